"""Forms of models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from clavier.images.models import ImageVersion
from clavier.portal import labels
from models_app.services import IMPORT_SOURCES


class ModelForm(forms.Form):
    """Register a base model. ``images``: those that may bring a model with them."""

    name = forms.CharField(label=_("Name"), max_length=100)
    source = forms.ChoiceField(label=_("Source"), choices=[(name, labels.SOURCES[name]) for name in IMPORT_SOURCES])
    location = forms.CharField(
        label=_("Location"),
        required=False,
        max_length=1000,
        help_text=_(
            "Hub: owner/name. Your files: private/folder or public/folder. Object storage: store/bucket/prefix, the"
            " store being one of Settings. Server: an absolute path that the operator allows."
        ),
    )
    image = forms.ChoiceField(
        label=_("Container image"), required=False, help_text=_("Its files stay in it: the model can be served.")
    )
    revision = forms.CharField(
        label=_("Revision"), required=False, max_length=100, help_text=_("Of a hub: branch, tag or commit.")
    )
    description = forms.CharField(label=_("Description"), required=False, widget=forms.Textarea(attrs={"rows": 2}))
    license = forms.CharField(label=_("License"), required=False, max_length=100)
    tags = forms.CharField(label=_("Tags"), required=False, help_text=_("Separated by commas."))

    def __init__(self, *arguments: Any, images: Iterable[ImageVersion], **named: Any) -> None:
        super().__init__(*arguments, **named)
        choices = [(str(image.pk), str(image)) for image in images]
        self.fields["image"].choices = [("", _("choose one")), *choices]  # type: ignore[attr-defined]

    def clean(self) -> dict[str, Any]:
        """An image takes the place of the location."""
        given = dict(super().clean() or {})
        needed = "image" if given.get("source") == "image" else "location"
        if given.get("source") and not given.get(needed) and needed not in self.errors:
            self.add_error(needed, forms.ValidationError(_("This field is required."), code="required"))
        return given

    def arguments(self) -> dict[str, Any]:
        """What the service takes."""
        given = dict(self.cleaned_data)
        image = given.pop("image")
        return {
            **given,
            "location": image if given["source"] == "image" else given["location"],
            "tags": self.tag_list(),
        }

    def tag_list(self) -> list[str]:
        """The tags, one by one."""
        return [tag.strip() for tag in self.cleaned_data["tags"].replace("，", ",").split(",") if tag.strip()]
