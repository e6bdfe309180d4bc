"""Forms of the settings page."""

from __future__ import annotations

from datetime import datetime, timedelta

from django import forms
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from clavier.core.actor import ROLES, SCOPES
from clavier.portal import labels


class ApiKeyForm(forms.Form):
    """A new API key."""

    name = forms.CharField(label=_("Name"), max_length=100, help_text=_("What or who will use it."))
    scopes = forms.MultipleChoiceField(
        label=_("Scopes"),
        choices=[(scope, scope) for scope in SCOPES],
        initial=list(SCOPES),
        widget=forms.CheckboxSelectMultiple,
    )
    expires_in_days = forms.TypedChoiceField(
        label=_("Expires"),
        choices=[("30", _("in 30 days")), ("90", _("in 90 days")), ("365", _("in a year")), ("", _("never"))],
        required=False,
        initial="90",
        coerce=int,
        empty_value=None,
    )

    def expires_at(self) -> datetime | None:
        """The moment; None: never."""
        days = self.cleaned_data["expires_in_days"]
        return timezone.now() + timedelta(days=days) if days else None


class MemberForm(forms.Form):
    """Add a user to the tenant."""

    username = forms.CharField(label=_("User name"), max_length=150)
    role = forms.ChoiceField(label=_("Role"), choices=[(role, labels.ROLES[role]) for role in ROLES], initial="member")


class ObjectStoreForm(forms.Form):
    """An object store (S3) of the tenant."""

    name = forms.CharField(
        label=_("Name"), max_length=100, help_text=_("As it stands in front of the bucket: name/bucket/prefix.")
    )
    endpoint_url = forms.CharField(
        label=_("Address"), max_length=1000, widget=forms.TextInput({"placeholder": "https://", "spellcheck": "false"})
    )
    region = forms.CharField(label=_("Region"), max_length=100, required=False)
    access_key = forms.CharField(
        label=_("Access key"), max_length=1000, widget=forms.TextInput({"autocomplete": "off"})
    )
    secret_key = forms.CharField(
        label=_("Secret key"),
        max_length=1000,
        help_text=_("Kept sealed and never shown again."),
        widget=forms.PasswordInput({"autocomplete": "new-password"}),
    )
