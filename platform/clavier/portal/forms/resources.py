"""The fields in which a person asks for a resource group, cores, memory and GPUs; shared by several forms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django import forms
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

GIB_IN_MIB = 1024
DEFAULT_GROUP = "default"
WHOLE, SHARE, MIG = "whole", "share", "mig:"
_NUMBER = {"class": "number"}


class ResourceForm(forms.Form):
    """``groups``: the resource groups that may be chosen, as ``quotas.capacity`` tells them."""

    resource_group = forms.ChoiceField(label=_("Resource group"), required=False)
    cpu_cores = forms.FloatField(label=_("CPU cores"), required=False, initial=1, min_value=0.1)
    memory_gib = forms.FloatField(label=_("Memory (GiB)"), required=False, initial=4, min_value=0.125)
    gpu_kind = forms.ChoiceField(label=_("Kind of GPU"), required=False)
    gpus = forms.IntegerField(label=_("GPUs"), required=False, initial=0, min_value=0)
    gpu_cores_percent = forms.IntegerField(
        label=_("Share of a GPU (%)"),
        required=False,
        help_text=_("Counted when a run starts; the hardware does not enforce it."),
        widget=forms.NumberInput(attrs=_NUMBER),
    )
    gpu_memory_gib = forms.FloatField(
        label=_("Memory of the share (GiB)"), required=False, widget=forms.NumberInput(attrs=_NUMBER)
    )

    def __init__(self, *args: Any, groups: Sequence[dict[str, Any]] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        active = [group for group in groups if group["is_active"]]
        names = [(group["name"], group_text(group)) for group in active] or [(DEFAULT_GROUP, DEFAULT_GROUP)]
        self.fields["resource_group"].choices = names  # type: ignore[attr-defined]
        first = DEFAULT_GROUP if DEFAULT_GROUP in dict(names) else names[0][0]
        self.fields["resource_group"].initial = first
        self.offers_shares = any(group["shares"]["gpus"] for group in active)
        kinds = [(WHOLE, _("whole GPUs"))] + ([(SHARE, _("a share of one GPU"))] if self.offers_shares else [])
        profiles = sorted({kind["profile"] for group in active for kind in group["mig"]})
        self.fields["gpu_kind"].choices = [*kinds, *((MIG + name, f"MIG {name}") for name in profiles)]  # type: ignore[attr-defined]
        self.fields["gpu_kind"].initial = WHOLE

    def offers_kinds(self) -> bool:
        """There is something else than whole GPUs."""
        return len(self.fields["gpu_kind"].choices) > 1  # type: ignore[attr-defined]

    def resources(self) -> dict[str, Any]:
        """In the units of the ledger. What was left empty is left to the group's defaults."""
        given, kind = self.cleaned_data, self.cleaned_data["gpu_kind"] or WHOLE
        found: dict[str, Any] = {}
        if given["cpu_cores"] is not None:
            found["cpu_milli"] = round(given["cpu_cores"] * 1000)
        if given["memory_gib"] is not None:
            found["memory_mib"] = round(given["memory_gib"] * GIB_IN_MIB)
        if kind == SHARE:
            found["gpu_cores_percent"] = given["gpu_cores_percent"] or 0
            found["gpu_memory_mib"] = round((given["gpu_memory_gib"] or 0) * GIB_IN_MIB)
        elif kind.startswith(MIG) and given["gpus"]:
            found |= {"mig_profile": kind.removeprefix(MIG), "mig_devices": given["gpus"]}
        elif given["gpus"] is not None:
            found["gpus"] = given["gpus"]
        return found

    def where(self) -> dict[str, Any]:
        """The options of a run: its group, where it is not the usual one."""
        group = self.cleaned_data["resource_group"]
        return {"resource_group": group} if group and group != DEFAULT_GROUP else {}


def group_text(group: dict[str, Any]) -> str:
    """The name, and what is free: ``research (6 CPU cores, 1 GPUs free)``."""
    cores, gpus = group["free"]["cpu_milli"] / 1000, group["free"]["gpus"]
    parts = [f"{cores:.3g} {gettext('CPU cores')}"]
    if group["capacity"]["gpus"]:
        parts.append(f"{gpus} {gettext('GPUs')}")
    return f"{group['name']} ({gettext('free')}: {', '.join(parts)})"
