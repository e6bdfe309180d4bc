"""Forms of datasets."""

from __future__ import annotations

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

PURPOSES = [
    ("", _("whatever its columns say")),
    ("sft", _("fine-tuning: questions and answers, instructions, or messages")),
    ("pretrain", _("pretraining: plain text")),
    ("preference", _("preference: chosen and rejected answers")),
    ("classification", _("classification: text and label")),
]
LANGUAGES = [("zh", "中文"), ("en", "English")]


class VersionForm(forms.Form):
    """A file for a further version."""

    file = forms.FileField(label=_("File"), help_text=_("JSON, JSONL, CSV or TXT in UTF-8, or Parquet."))
    purpose = forms.ChoiceField(
        label=_("Purpose"),
        choices=PURPOSES,
        required=False,
        help_text=_("Demands the columns that this purpose needs."),
    )


class DatasetForm(VersionForm):
    """A new dataset with its first file."""

    name = forms.CharField(label=_("Name"), max_length=100)
    description = forms.CharField(label=_("Description"), required=False, widget=forms.Textarea(attrs={"rows": 2}))
    tags = forms.CharField(label=_("Tags"), required=False, help_text=_("Separated by commas."))
    languages = forms.MultipleChoiceField(
        label=_("Languages"), choices=LANGUAGES, required=False, widget=forms.CheckboxSelectMultiple
    )
    license = forms.CharField(label=_("License"), required=False, max_length=100)
    task = forms.CharField(label=_("Task type"), required=False, max_length=100)

    def columns(self) -> dict[str, Any]:
        """What the service takes besides the file."""
        given = self.cleaned_data
        tags = [tag.strip() for tag in given["tags"].replace("，", ",").split(",") if tag.strip()]
        return {**{name: given[name] for name in ("name", "description", "languages", "license", "task")}, "tags": tags}
