"""Forms of datasets."""

from __future__ import annotations

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from clavier.portal.labels import SPLITS

PURPOSES = [
    ("", _("whatever its columns say")),
    ("sft", _("fine-tuning: questions and answers, instructions, messages, or plain text")),
    ("pretrain", _("pretraining: plain text")),
    ("preference", _("preference: chosen and rejected answers")),
    ("classification", _("classification: text and label")),
    ("seq2seq", _("text to text: source and target")),
    ("rl", _("reinforcement learning: prompts")),
]
NO_SPLIT = ("", _("no split"))
LANGUAGES = [("zh", "中文"), ("en", "English")]


class LabelsForm(forms.Form):
    """What the rows are of the dataset."""

    split = forms.ChoiceField(label=_("Part of the split"), choices=[NO_SPLIT, *SPLITS.items()], required=False)
    subset = forms.CharField(
        label=_("Subset"),
        required=False,
        max_length=100,
        widget=forms.TextInput({"placeholder": "Default"}),
        help_text=_("Leakage is looked for between the splits of one subset."),
    )


class VersionForm(LabelsForm):
    """A file for a further version."""

    file = forms.FileField(label=_("File"), help_text=_("JSON, JSONL, CSV or TXT in UTF-8, or Parquet, or XLSX."))
    purpose = forms.ChoiceField(
        label=_("Purpose"),
        choices=PURPOSES,
        required=False,
        help_text=_("Demands the columns that this purpose needs."),
    )


class CleanForm(forms.Form):
    """What to take out of a version's rows to make the next one."""

    deduplicate = forms.BooleanField(label=_("Drop repeated rows"), required=False, initial=True)
    near = forms.BooleanField(label=_("Also rows that are almost the same"), required=False)
    deidentify = forms.BooleanField(
        label=_("Replace personal data and secrets"),
        required=False,
        initial=True,
        help_text=_("E-mail addresses, telephone, identity and card numbers and keys become [EMAIL] and so on."),
    )

    controls = forms.BooleanField(label=_("Remove control characters"), required=False, initial=True)

    def steps(self) -> list[dict[str, Any]]:
        """The steps of ``derive_version``."""
        given, steps = self.cleaned_data, []
        if given["controls"]:
            steps.append({"step": "clean"})
        if given["deduplicate"] or given["near"]:
            steps.append({"step": "deduplicate", "near": given["near"]})
        if given["deidentify"]:
            steps.append({"step": "deidentify"})
        return steps


class SplitForm(forms.Form):
    """Percentages of a version's rows; what validation and test leave is for training."""

    validation = forms.IntegerField(label=_("Validation"), min_value=0, max_value=90, initial=10)
    test = forms.IntegerField(label=_("Test"), min_value=0, max_value=90, initial=10)

    def splits(self) -> dict[str, float]:
        """The shares of ``split_version``."""
        percent = {name: self.cleaned_data[name] for name in ("validation", "test")}
        percent = {"train": 100 - sum(percent.values()), **percent}
        return {name: value / 100 for name, value in percent.items() if value}


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
        names = ("name", "description", "languages", "license", "task", "split", "subset")
        return {**{name: given[name] for name in names}, "tags": tags}
