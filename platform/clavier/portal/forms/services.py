"""Forms of inference services."""

from __future__ import annotations

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from clavier.portal import labels
from clavier.portal.forms.own_code import lines_field, pairs_of
from clavier.portal.forms.resources import ResourceForm

_NUMBER = {"class": "number"}


class ServiceForm(ResourceForm):
    """Deploy a model version under a name."""

    name = forms.CharField(
        label=_("Service name"),
        max_length=63,
        help_text=_("Lower-case letters, digits and '-': what programs ask for."),
    )
    model_version = forms.CharField(label=_("Model version"), required=False)
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
    min_replicas = forms.IntegerField(
        label=_("Fewest replicas"), required=False, widget=forms.NumberInput(attrs=_NUMBER)
    )
    max_replicas = forms.IntegerField(label=_("Most replicas"), required=False, widget=forms.NumberInput(attrs=_NUMBER))
    scale_on = forms.ChoiceField(label=_("Scale on"), required=False, choices=list(labels.SCALE_ON.items()))
    scale_threshold = forms.IntegerField(
        label=_("Threshold"), required=False, initial=100, widget=forms.NumberInput(attrs=_NUMBER)
    )
    image = forms.CharField(label=_("Image"), required=False, help_text=_("Your own server; it needs a container."))
    command = forms.CharField(
        label=_("Command"), required=False, help_text=_("Empty: what the image starts."), widget=forms.TextInput
    )
    image_ports = forms.CharField(label=_("Ports of the image"), required=False, help_text=_("Such as 5050, 8080."))
    environment = lines_field(_("Environment"), "OMP_NUM_THREADS=4")
    cpu_cores = forms.FloatField(label=_("CPU cores"), required=False, initial=0.5, min_value=0.1)
    memory_gib = forms.FloatField(label=_("Memory (GiB)"), required=False, initial=2, min_value=0.125)

    def has_own_errors(self) -> bool:
        """The fold must be open."""
        names = ("min_replicas", "max_replicas", "scale_threshold", "image", "command", "image_ports", "environment")
        return any(self[name].errors for name in names)

    def own_server(self) -> dict[str, Any]:
        """Scaling and the own server, only what was given. A port that is no number the service refuses by name."""
        given = self.cleaned_data
        names = ("min_replicas", "max_replicas", "scale_on", "scale_threshold", "image", "command")
        found = {name: given[name] for name in names if given[name] not in (None, "")}
        ports = [port.strip() for port in given["image_ports"].split(",") if port.strip()]
        if ports:
            found["image_ports"] = [int(port) if port.isascii() and port.isdigit() else port for port in ports]
        return found | {"environment": pairs_of(given["environment"])}
