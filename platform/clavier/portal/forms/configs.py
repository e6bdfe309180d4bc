"""A YAML training configuration that fills a form: pasted, uploaded, or a file of the user's; and what it fills in."""

from __future__ import annotations

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from clavier.core.errors import Invalid, TooLarge
from clavier.core.yaml_text import MAX_YAML_BYTES
from clavier.portal.forms.searches import NUM_RANGES, between
from finetune_app.from_config import Configured


class ConfigForm(forms.Form):
    """Where the YAML comes from; one of the three."""

    config = forms.CharField(
        label=_("Training configuration (YAML)"),
        required=False,
        strip=False,
        widget=forms.Textarea(attrs={"rows": 6, "class": "code", "spellcheck": "false"}),
    )
    upload = forms.FileField(
        label=_("Or a file"), required=False, widget=forms.FileInput(attrs={"accept": ".yaml,.yml"})
    )
    config_file = forms.CharField(
        label=_("Or one of your files"), required=False, help_text=_("Such as private/configs/sft.yaml.")
    )

    def text(self) -> str:
        """What was pasted or uploaded. Raises TooLarge, Invalid (``bad_encoding``)."""
        upload = self.cleaned_data["upload"]
        if upload is None:
            return whole_lines(self.cleaned_data["config"])
        if upload.size > MAX_YAML_BYTES:
            message = f"upload has {upload.size:,} bytes; {MAX_YAML_BYTES:,} are allowed."
            raise TooLarge(message, code="too_long", field="upload")
        try:
            return str(upload.read().decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            message = f"upload is not UTF-8: byte {error.start + 1}."
            raise Invalid(message, code="bad_encoding", field="upload") from error


def task_values(text: str, made: Configured) -> dict[str, Any]:
    """The initial values of a task's form."""
    task = made.task
    names = ("name", "output_model_name", "recipe", "method", "base_model", "train_dataset", "validation_dataset")
    return {
        **{name: written(value) for name, value in task["hyperparameters"].items()},
        **{name: str(task[name]) for name in (*names, "reward_model", "tokenizer") if task.get(name)},
        **task["resources"],
        "config": text,
    }


def search_values(text: str, made: Configured) -> dict[str, Any]:
    """The initial values of a search's form."""
    search = made.search
    values = {**task_values(text, made), "num_trials": search["num_trials"], "metric": search["metric"]}
    values["maximize"] = "yes" if search["maximize"] else ""
    for number, (name, given) in enumerate(list(search["space"].items())[:NUM_RANGES]):
        values[f"range_name_{number}"] = name
        if "choices" in given:
            values[f"range_choices_{number}"] = f"{between(name)} ".join(map(written, given["choices"]))
        else:
            values |= {f"range_{part}_{number}": written(given.get(part)) for part in ("low", "high")}
            values[f"range_log_{number}"] = "yes" if given.get("log") else ""
    return values


def written(value: Any) -> str:
    """A hyperparameter as the fields of the forms write it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    short = f"{value:g}" if isinstance(value, float) else ""
    return short if short and float(short) == value else str(value)


def whole_lines(text: str) -> str:
    """Browsers send forms with CRLF."""
    return text.replace("\r\n", "\n")
