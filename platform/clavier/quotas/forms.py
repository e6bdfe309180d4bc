"""Admin forms that ask for a name instead of an id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django import forms
from unfold.widgets import UnfoldAdminTextInputWidget

from clavier.core.errors import DomainError
from clavier.quotas.models import QuotaWindow, Usage
from clavier.quotas.queries import owner_id

if TYPE_CHECKING:
    ModelForm = forms.ModelForm[Any]
else:
    ModelForm = forms.ModelForm


class OwnerForm(ModelForm):
    """``name``: the name of the tenant, user or node that ``scope`` says; asked for once, when the row is new."""

    name = forms.CharField(
        max_length=150, help_text="The name of the tenant, user or node.", widget=UnfoldAdminTextInputWidget
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    def clean(self) -> dict[str, Any]:
        """Find the owner by name. Adds an error when there is none."""
        cleaned = super().clean() or {}
        if cleaned.get("scope") and cleaned.get("name"):
            try:
                self.instance.scope_id = owner_id(cleaned["scope"], cleaned["name"])
            except DomainError as refusal:
                self.add_error("name", refusal.message)
        return cleaned


class UsageForm(OwnerForm):
    """A cap. That a cap is there already is no error: it is set anew."""

    class Meta:
        model = Usage
        fields: ClassVar = ["scope", "name", "resource", "cap"]


class QuotaWindowForm(OwnerForm):
    """When a quota is valid."""

    class Meta:
        model = QuotaWindow
        fields: ClassVar = ["scope", "name", "valid_from", "valid_until"]

    def clean(self) -> dict[str, Any]:
        """Adds an error when the end is not after the start."""
        cleaned = super().clean()
        start, end = cleaned.get("valid_from"), cleaned.get("valid_until")
        if start and end and start >= end:
            self.add_error("valid_until", "It is not after the start.")
        return cleaned
