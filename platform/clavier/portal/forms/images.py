"""Forms of container images."""

from __future__ import annotations

from django import forms
from django.utils.translation import gettext_lazy as _


class ImageForm(forms.Form):
    """Register an image."""

    name = forms.CharField(
        label=_("Name"), max_length=200, help_text=_("Lower case, in parts separated by slashes: team/train")
    )
    overview = forms.CharField(label=_("Overview"), required=False, max_length=500)
    description = forms.CharField(label=_("Description"), required=False, widget=forms.Textarea(attrs={"rows": 2}))
    labels = forms.CharField(label=_("Labels"), required=False, help_text=_("Separated by commas."))

    def label_list(self) -> list[str]:
        """The labels, one by one."""
        return [label.strip() for label in self.cleaned_data["labels"].replace("，", ",").split(",") if label.strip()]


class ArchiveForm(forms.Form):
    """Import a tag from an uploaded archive."""

    prefix = "archive"
    tag = forms.CharField(label=_("Tag"), max_length=128)
    file = forms.UUIDField(label=_("Archive"), help_text=_("What docker save writes, or an OCI layout; plain or gzip."))


class RegistryForm(forms.Form):
    """Import a tag from a registry."""

    prefix = "registry"
    tag = forms.CharField(label=_("Tag"), max_length=128)
    reference = forms.CharField(
        label=_("Image on the registry"), max_length=400, help_text=_("host:port/team/name:tag, or ...@sha256:...")
    )
    username = forms.CharField(label=_("User name"), required=False, max_length=200)
    password = forms.CharField(
        label=_("Password"),
        required=False,
        max_length=4000,
        widget=forms.PasswordInput(attrs={"autocomplete": "off"}),
        help_text=_("Kept until the import has ended, and nowhere else."),
    )
