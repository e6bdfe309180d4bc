"""The form of a new hyperparameter search: a task, and the ranges that its trials try."""

from __future__ import annotations

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from clavier.portal.forms.tasks import TaskForm
from runner.contract.knobs import KNOBS

NUM_RANGES = 4
PRUNERS = [
    ("none", _("not at all")),
    ("median", _("below the median of the others")),
    ("halving", _("successive halving")),
]
SEARCHABLE = [("", "–"), *((knob.name, knob.name) for knob in KNOBS)]
#: Knobs of which one value is a list of names, with commas in it.
LISTS = frozenset(knob.name for knob in KNOBS if knob.type == "list")


class SearchForm(TaskForm):
    """What a person fills in; knobs outside the ranges are the same in all trials."""

    name = forms.CharField(label=_("Name"), max_length=100)
    metric = forms.CharField(
        label=_("Metric"), max_length=100, initial="eval/loss", help_text=_("Of the finished run, such as eval/rougeL.")
    )
    maximize = forms.ChoiceField(
        label=_("The best is"), choices=[("", _("the smallest")), ("yes", _("the largest"))], required=False
    )
    num_trials = forms.IntegerField(label=_("Trials"), initial=12, min_value=1)
    num_parallel = forms.IntegerField(label=_("At the same time"), initial=1, min_value=1)
    pruner = forms.ChoiceField(
        label=_("Stop trials early"),
        choices=PRUNERS,
        help_text=_("Compares the metric on the way; one of eval/ needs eval_steps."),
    )
    pruning_warmup_steps = forms.IntegerField(label=_("Not before step"), initial=0, min_value=0)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for number in range(NUM_RANGES):
            self.fields[f"range_name_{number}"] = forms.ChoiceField(
                label=_("Hyperparameter"), choices=SEARCHABLE, required=False
            )
            self.fields[f"range_low_{number}"] = forms.CharField(label=_("Lowest"), required=False)
            self.fields[f"range_high_{number}"] = forms.CharField(label=_("Highest"), required=False)
            self.fields[f"range_log_{number}"] = forms.ChoiceField(
                label=_("Scale"), choices=[("", _("linear")), ("yes", _("logarithmic"))], required=False
            )
            self.fields[f"range_choices_{number}"] = forms.CharField(
                label=_("Or one of"), required=False, help_text=_("Separated by commas; lists of names by semicolons.")
            )

    def ranges(self) -> list[list[forms.BoundField]]:
        """The fields of each range."""
        parts = ("name", "low", "high", "log", "choices")
        return [[self[f"range_{part}_{number}"] for part in parts] for number in range(NUM_RANGES)]

    def space(self) -> dict[str, Any]:
        """Knob -> its range, as it was written."""
        given = self.cleaned_data
        found: dict[str, Any] = {}
        for number in range(NUM_RANGES):
            name, choices = given[f"range_name_{number}"], given[f"range_choices_{number}"]
            if name and choices:
                parts = choices.split(between(name))
                found[name] = {"choices": [part.strip() for part in parts if part.strip()]}
            elif name:
                low, high = given[f"range_low_{number}"], given[f"range_high_{number}"]
                found[name] = {"low": low, "high": high, "log": bool(given[f"range_log_{number}"])}
        return found

    def hyperparameters(self) -> dict[str, Any]:
        """What is the same in all trials: knobs that were changed, and none that is tried."""
        given, tried = super().hyperparameters(), self.space()
        return {name: v for name, v in given.items() if name not in tried and v != self.fields[name].initial}


def between(name: str) -> str:
    """What separates the choices of a knob."""
    return ";" if name in LISTS else ","
