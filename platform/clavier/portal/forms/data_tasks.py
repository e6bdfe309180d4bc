"""Forms of runs that make or measure dataset versions, and of data plugins."""

from __future__ import annotations

import json
from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from clavier.core.errors import Invalid
from clavier.portal.forms.datasets import PURPOSES, LabelsForm
from clavier.portal.forms.own_code import folder_field, lines_field, pairs_of

SOURCES = [("url", _("an address of the web")), ("s3", _("object storage (S3)"))]


class FetchForm(LabelsForm):
    """A file from elsewhere."""

    source = forms.ChoiceField(label=_("From"), choices=SOURCES)
    location = forms.CharField(
        label=_("Location"),
        max_length=2000,
        widget=forms.TextInput({"placeholder": "https://host/file.jsonl", "spellcheck": "false"}),
        help_text=_("Of an object storage: store/bucket/key, where the store is one of yours."),
    )
    file_name = forms.CharField(
        label=_("File name"), required=False, max_length=255, help_text=_("Where the location does not end in it.")
    )
    purpose = forms.ChoiceField(label=_("Purpose"), choices=PURPOSES, required=False)


class GenerateForm(LabelsForm):
    """A run of a plugin."""

    plugin = forms.CharField(label=_("Plugin"))
    parameters = lines_field(_("Parameters"), "rows=100")
    input_version = forms.CharField(label=_("Rows to read"), required=False)

    def asked(self) -> dict[str, Any]:
        """What the service takes."""
        given = self.cleaned_data
        return {
            "plugin": given["plugin"],
            "parameters": pairs_of(given["parameters"]),
            "input_version": given["input_version"] or None,
            "split": given["split"],
            "subset": given["subset"],
        }


class TokensForm(forms.Form):
    """A count of tokens."""

    model_version = forms.CharField(label=_("Model version"))
    max_length = forms.IntegerField(label=_("Longest sample"), required=False, min_value=1, max_value=100_000_000)


class OverlapForm(forms.Form):
    """A search for rows that are elsewhere too."""

    against = forms.CharField(label=_("Compare with"), required=False)
    threshold = forms.IntegerField(label=_("Similarity that counts (%)"), min_value=50, max_value=100, initial=80)

    def asked(self) -> dict[str, Any]:
        """What the service takes."""
        against = self.cleaned_data["against"]
        return {"against": [against] if against else None, "threshold": self.cleaned_data["threshold"] / 100}


class PluginForm(forms.Form):
    """A data plugin."""

    name = forms.CharField(label=_("Name"), max_length=100)
    version = forms.CharField(label=_("Version"), max_length=50, initial="1")
    plugin_class = forms.CharField(label=_("Class"), required=False, max_length=100)
    provider = forms.CharField(label=_("Provider"), required=False, max_length=100)
    description = forms.CharField(label=_("Description"), required=False, widget=forms.Textarea(attrs={"rows": 2}))
    code_folder = folder_field(_("Code folder"), _("Copied when it starts; the command starts in the copy."))
    image = forms.CharField(label=_("Image"), required=False)
    command = forms.CharField(
        label=_("Command"),
        widget=forms.Textarea({"rows": 3, "class": "code", "placeholder": "python make.py --out ${output_dir}"}),
        help_text=_("No shell reads it: put pipes and several commands into a script of the code folder."),
    )
    environment = lines_field(_("Environment"), "OMP_NUM_THREADS=1")
    output_file = forms.CharField(
        label=_("Output file"),
        max_length=255,
        initial="data.jsonl",
        help_text=_("Below the output folder; its ending is the format."),
    )
    parameters = forms.CharField(
        label=_("Parameters"),
        required=False,
        widget=forms.Textarea({"rows": 3, "class": "code", "placeholder": '[{"name": "rows", "type": "int"}]'}),
        help_text=_("JSON: a list of name, type (str, int, float, bool), default, required, choices, help."),
    )

    def columns(self) -> dict[str, Any]:
        """What the service takes. Raises Invalid."""
        given = dict(self.cleaned_data)
        try:
            given["parameters"] = json.loads(given["parameters"] or "[]")
        except ValueError as fault:
            raise Invalid(f"parameters is no JSON: {fault}.", code="malformed_json", field="parameters") from fault
        return given | {"environment": pairs_of(given["environment"]), "image": given["image"] or None}
