"""Forms of models."""

from __future__ import annotations

from django import forms
from django.utils.translation import gettext_lazy as _

from clavier.portal import labels
from models_app.services import IMPORT_SOURCES

#: An image is registered by the APIs; here are the sources that bring files.
FILE_SOURCES = tuple(name for name in IMPORT_SOURCES if name != "image")


class ModelForm(forms.Form):
    """Register a base model."""

    name = forms.CharField(label=_("Name"), max_length=100)
    source = forms.ChoiceField(label=_("Source"), choices=[(name, labels.SOURCES[name]) for name in FILE_SOURCES])
    location = forms.CharField(
        label=_("Location"),
        max_length=1000,
        help_text=_(
            "Hub: owner/name. Your files: private/folder or public/folder. Server: an absolute path that the operator"
            " allows."
        ),
    )
    revision = forms.CharField(
        label=_("Revision"), required=False, max_length=100, help_text=_("Of a hub: branch, tag or commit.")
    )
    description = forms.CharField(label=_("Description"), required=False, widget=forms.Textarea(attrs={"rows": 2}))
    license = forms.CharField(label=_("License"), required=False, max_length=100)
    tags = forms.CharField(label=_("Tags"), required=False, help_text=_("Separated by commas."))

    def tag_list(self) -> list[str]:
        """The tags, one by one."""
        return [tag.strip() for tag in self.cleaned_data["tags"].replace("，", ",").split(",") if tag.strip()]
