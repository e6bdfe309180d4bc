"""Forms of inference services."""

from __future__ import annotations

from django import forms
from django.utils.translation import gettext_lazy as _

from clavier.portal.forms.resources import ResourceForm

_NUMBER = {"class": "number"}


class ServiceForm(ResourceForm):
    """Deploy a model version under a name."""

    name = forms.CharField(
        label=_("Service name"),
        max_length=63,
        help_text=_("Lower-case letters, digits and '-': what programs ask for."),
    )
    model_version = forms.CharField(label=_("Model version"))
    description = forms.CharField(label=_("Description"), required=False, widget=forms.Textarea(attrs={"rows": 2}))
    num_replicas = forms.IntegerField(label=_("Replicas"), initial=1, widget=forms.NumberInput(attrs=_NUMBER))
    context_tokens = forms.IntegerField(
        label=_("Longest conversation (tokens)"),
        required=False,
        help_text=_("Empty: 2048, or what the model was built for."),
        widget=forms.NumberInput(attrs=_NUMBER),
    )
    parallel = forms.IntegerField(
        label=_("Requests at once, each replica"), initial=4, widget=forms.NumberInput(attrs=_NUMBER)
    )
    cpu_cores = forms.FloatField(label=_("CPU cores"), required=False, initial=0.5, min_value=0.1)
    memory_gib = forms.FloatField(label=_("Memory (GiB)"), required=False, initial=2, min_value=0.125)
