"""The form of a new task; its advanced fields are the table of knobs."""

from __future__ import annotations

import json
from typing import Any

from django import forms
from django.utils.translation import get_language
from django.utils.translation import gettext_lazy as _

from clavier.portal import labels
from clavier.portal.complexity import COMPLEXITIES
from clavier.portal.forms.resources import ResourceForm
from runner.contract.knob_values import Knob
from runner.contract.knobs import KNOBS, RECIPES

#: Knobs that most people look at; the others are folded away.
MAIN_KNOBS = (
    "loss_type",
    "algorithm",
    "reward_function",
    "num_train_epochs",
    "learning_rate",
    "per_device_train_batch_size",
    "max_seq_length",
    "lora_r",
    "quantization_bits",
)
#: Methods in the order of the select box; the first is the one that most people want.
METHODS = ("lora", "full", "qlora")


class TaskForm(ResourceForm):
    """What a person fills in; only shapes are checked here, the service checks the values."""

    name = forms.CharField(label=_("Task name"), max_length=100)
    description = forms.CharField(label=_("Description"), required=False, widget=forms.Textarea(attrs={"rows": 2}))
    recipe = forms.ChoiceField(label=_("What to train"), choices=[(name, labels.RECIPES[name]) for name in RECIPES])
    base_model = forms.CharField(label=_("Base model"), required=False)
    train_dataset = forms.CharField(label=_("Training data"))
    validation_dataset = forms.CharField(label=_("Validation data"), required=False)
    reward_model = forms.CharField(label=_("Reward model"), required=False)
    tokenizer = forms.CharField(
        label=_("Own tokenizer"),
        required=False,
        help_text=_("A tokenizer.json, a tokenizer.model or a folder of your files; empty: one is trained."),
    )
    method = forms.ChoiceField(label=_("Method"), choices=[(name, labels.METHODS[name]) for name in METHODS])
    output_model_name = forms.CharField(
        label=_("Name of the new model"), required=False, max_length=100, help_text=_("Empty: the task's name.")
    )
    config = forms.CharField(required=False, strip=False, widget=forms.HiddenInput)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for knob in KNOBS:
            self.fields[knob.name] = knob_field(knob)

    def clean_config(self) -> str:
        """The YAML that filled the form, with the line ends that it had."""
        return str(self.cleaned_data["config"]).replace("\r\n", "\n")

    def main_knobs(self) -> list[forms.BoundField]:
        """The knobs shown at once."""
        return [self[name] for name in MAIN_KNOBS]

    def advanced_knobs(self) -> list[forms.BoundField]:
        """The folded knobs."""
        return [self[knob.name] for knob in KNOBS if knob.name not in MAIN_KNOBS]

    def has_advanced_errors(self) -> bool:
        """The fold must be open."""
        return any(field.errors for field in self.advanced_knobs())

    def complexities(self) -> str:
        """Word -> values of knobs, for the page's script."""
        return json.dumps(COMPLEXITIES)

    def methods(self) -> str:
        """Recipe -> its methods, for the page's script."""
        return json.dumps(RECIPES)

    def hyperparameters(self) -> dict[str, Any]:
        """The knobs that the chosen recipe and method take, as they were given; empty ones are left out."""
        recipe, method = self.cleaned_data["recipe"], self.cleaned_data["method"]
        taken = (k for k in KNOBS if recipe in k.recipes and (not k.methods or method in k.methods))
        given = {knob.name: self.cleaned_data[knob.name] for knob in taken}
        known = {knob.name: given.get(knob.name) or knob.default for knob in KNOBS}
        idle = {knob.name for knob in KNOBS if not knob.counts(known)}  # hidden by the choices that the page shows
        return {name: value for name, value in given.items() if value != "" and name not in idle}

    def task(self) -> dict[str, Any]:
        """What ``create_fine_tune_task`` and ``create_search`` take alike."""
        given = self.cleaned_data
        return {
            "recipe": given["recipe"],
            "method": given["method"],
            "base_model": given["base_model"] or None,
            "train_dataset": given["train_dataset"],
            "validation_dataset": given["validation_dataset"] or None,
            "reward_model": given["reward_model"] or None,
            "tokenizer": given["tokenizer"],
            "hyperparameters": self.hyperparameters(),
            "resources": self.resources(),
            "options": self.where(),
        }


class KnobSelect(forms.Select):
    """A select box whose options say which recipes take them, where not all do that take the knob."""

    def __init__(self, knob: Knob, *args: Any) -> None:
        super().__init__(*args)
        self.knob = knob

    def create_option(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """One option of Django's, marked."""
        option = super().create_option(*args, **kwargs)
        if str(option["value"]) in dict(self.knob.narrow_choices):
            option["attrs"]["data-takers"] = " ".join(self.knob.takers_of(str(option["value"])))
        return option


def knob_field(knob: Knob) -> forms.Field:
    """A field of the knob's type with its default, range and help, marked with the recipes and methods that take it."""
    attributes = {"data-recipes": " ".join(knob.recipes), "data-methods": " ".join(knob.methods)}
    if knob.counts_with:
        attributes |= {"data-beside": knob.counts_with[0], "data-values": " ".join(knob.counts_with[1])}
    help_text = knob.help_zh if (get_language() or "").startswith("zh") else knob.help_en
    common: dict[str, Any] = {
        "label": labels.KNOBS.get(knob.name, knob.name),
        "required": False,
        "help_text": help_text,
    }
    if knob.type == "bool":
        # Not a checkbox: an absent one could not be told from "false".
        choices = [("false", _("no")), ("true", _("yes"))]
        common |= {"initial": "true" if knob.default else "false", "widget": forms.Select(attributes, choices)}
    elif knob.choices:
        common |= {"initial": knob.default, "widget": KnobSelect(knob, attributes, [(c, c) for c in knob.choices])}
    else:
        common |= {"initial": _written(knob.default), "widget": forms.TextInput(attributes | _range(knob))}
    field = forms.CharField(**common)
    field.code = knob.name if knob.name in labels.KNOBS else ""  # type: ignore[attr-defined]
    field.unit = knob.unit  # type: ignore[attr-defined]
    field.bounds = _bounds(knob)  # type: ignore[attr-defined]
    return field


def _range(knob: Knob) -> dict[str, str]:
    if knob.type == "list":
        return {}
    return {"inputmode": "decimal" if knob.type == "float" else "numeric", "class": "number", "autocomplete": "off"}


def _bounds(knob: Knob) -> str:
    if knob.minimum is None or knob.maximum is None:
        return ""
    return f"{_number(knob.minimum)} – {_number(knob.maximum)}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:g}"


def _written(default: Any) -> str:
    if default is None:
        return ""
    return (
        ", ".join(default)
        if isinstance(default, list | tuple)
        else f"{default:g}"
        if isinstance(default, float)
        else str(default)
    )
