"""Forms of evaluations."""

from __future__ import annotations

from django import forms
from django.utils.translation import gettext_lazy as _

from clavier.portal import labels
from clavier.portal.forms.resources import ResourceForm
from evaluation_app.services import METRICS


class EvaluationForm(ResourceForm):
    """Judge a model version on questions with known answers."""

    name = forms.CharField(label=_("Name"), max_length=100)
    model_version = forms.CharField(label=_("Model version"), help_text=_("A tuned version is judged beside its base."))
    dataset_version = forms.CharField(label=_("Questions and reference answers"))
    metrics = forms.MultipleChoiceField(
        label=_("Metrics"),
        choices=[(name, labels.METRICS[name]) for name in METRICS],
        initial=list(METRICS),
        widget=forms.CheckboxSelectMultiple,
    )
    max_new_tokens = forms.IntegerField(
        label=_("Longest answer (tokens)"), initial=64, widget=forms.NumberInput(attrs={"class": "number"})
    )
    limit = forms.IntegerField(
        label=_("Number of questions"),
        required=False,
        min_value=1,
        help_text=_("Empty: all."),
        widget=forms.NumberInput(attrs={"class": "number"}),
    )
    description = forms.CharField(label=_("Description"), required=False, widget=forms.Textarea(attrs={"rows": 2}))
