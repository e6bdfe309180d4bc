"""Admin forms that ask for a name instead of an id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django import forms
from unfold.widgets import UnfoldAdminTextInputWidget

from clavier.core.errors import DomainError
from clavier.quotas.models import QuotaWindow, Usage
from clavier.quotas.queries import owner_id, owner_name

if TYPE_CHECKING:
    ModelForm = forms.ModelForm[Any]
else:
    ModelForm = forms.ModelForm


class OwnerForm(ModelForm):
    """``owner``: the name of the tenant, user or node that ``scope`` says."""

    owner = forms.CharField(
        max_length=150, help_text="The name of the tenant, user or node.", widget=UnfoldAdminTextInputWidget
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance.pk:
            self.fields["owner"].initial = owner_name(self.instance.scope, self.instance.scope_id)

    def clean(self) -> dict[str, Any]:
        """Find the owner by name. Adds an error when there is none."""
        cleaned = super().clean() or {}
        if cleaned.get("scope") and cleaned.get("owner"):
            try:
                self.instance.scope_id = owner_id(cleaned["scope"], cleaned["owner"])
            except DomainError as refusal:
                self.add_error("owner", refusal.message)
        return cleaned


class UsageForm(OwnerForm):
    class Meta:
        model = Usage
        fields: ClassVar = ["scope", "owner", "resource", "cap"]


class QuotaWindowForm(OwnerForm):
    class Meta:
        model = QuotaWindow
        fields: ClassVar = ["scope", "owner", "valid_from", "valid_until"]
