"""Forms of inference services."""

from __future__ import annotations

from django import forms
from django.utils.translation import gettext_lazy as _

GIB_IN_MIB = 1024
_NUMBER = {"class": "number"}


class ServiceForm(forms.Form):
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
    cpu_cores = forms.FloatField(label=_("CPU cores"), initial=0.5, min_value=0.1)
    memory_gib = forms.FloatField(label=_("Memory (GiB)"), initial=2, min_value=0.125)
    gpus = forms.IntegerField(label=_("GPUs"), initial=0, min_value=0)

    def resources(self) -> dict[str, int]:
        """What each replica gets, in the units of the ledger."""
        return {
            "cpu_milli": round(self.cleaned_data["cpu_cores"] * 1000),
            "memory_mib": round(self.cleaned_data["memory_gib"] * GIB_IN_MIB),
            "gpus": self.cleaned_data["gpus"],
        }
