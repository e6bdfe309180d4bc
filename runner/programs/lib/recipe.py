"""The first and the last steps of every training recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from runner.contract.knobs import ADAPTER_METHODS, COMPARING, KNOBS, HyperparametersInvalid, check_hyperparameters
from runner.programs.lib.artifacts import hash_folder, model_facts, write_manifest
from runner.programs.lib.bundle import write_bundle, write_model_card
from runner.programs.lib.events import ProgramContext, ProgramError, Reporter, require
from runner.programs.lib.lengths import longest_sample
from runner.programs.lib.model import Device, choose_device, model_config
from runner.programs.lib.render import Renderer
from runner.programs.lib.sharding import is_wanted
from runner.programs.lib.train_state import seed_all
from runner.programs.lib.wishes import adapter_wishes

#: Knobs that change nothing without validation data, beside those that are refused then.
OF_VALIDATION = ("eval_steps", "max_predict_samples")


@dataclass(frozen=True, slots=True)
class Order:
    """What a recipe that tunes a base is asked to do, checked. ``max_tokens``: of one sample."""

    recipe: str
    method: str
    base: Path
    base_name: str
    train_data: Path
    validation_data: Path | None
    knobs: dict[str, Any]
    device: Device
    renderer: Renderer
    max_tokens: int

    @property
    def load_device(self) -> torch.device:
        """Where the base is loaded to: weights that are shared out later need not fit into one GPU."""
        return loading_device(self.knobs, self.device)

    @property
    def data_files(self) -> list[Path]:
        """All that was learned from or measured on."""
        return [self.train_data, *([self.validation_data] if self.validation_data else [])]


def read_order(context: ProgramContext, recipe: str) -> Order:
    """The parameters of the spec, complete and typed; device and seed are set. Raises ProgramError."""
    parameters, say = context.parameters, context.report
    base, method = Path(require(parameters, "base_model")), str(require(parameters, "method"))
    train_data = Path(require(parameters, "train_data"))
    validation_data = Path(parameters["validation_data"]) if parameters.get("validation_data") else None
    has_validation = validation_data is not None
    given = require(parameters, "hyperparameters")
    knobs = checked_knobs(recipe, method, given, has_base=True, has_validation=has_validation)
    if method in ADAPTER_METHODS:
        wishes = adapter_wishes(train_data, dict(knobs), alone=recipe == "sft")
        for name, value in wishes.items():
            say.phase("data", f"{train_data.name} asks for {name} {value}, which counts")
        knobs |= wishes
    tell_unused(say, knobs, has_validation=has_validation or recipe == "rl")
    return Order(
        recipe=recipe,
        method=method,
        base=base,
        base_name=str((parameters.get("lineage") or {}).get("base_model") or base.name),
        train_data=train_data,
        validation_data=validation_data,
        knobs=knobs,
        device=open_device(say, knobs, int(model_config(base).get("hidden_size") or 0)),
        renderer=Renderer.from_folder(base),
        max_tokens=longest_sample(base, knobs, say),
    )


def checked_knobs(
    recipe: str, method: str, given: Mapping[str, Any], *, has_base: bool, has_validation: bool
) -> dict[str, Any]:
    """The hyperparameters, complete and typed. Raises ProgramError naming all that is wrong."""
    try:
        knobs = check_hyperparameters(recipe, method, given, has_base=has_base)
    except HyperparametersInvalid as error:
        raise ProgramError("hyperparameters_invalid", str(error), error.problems[0].field) from None
    for name in COMPARING:
        if knobs.get(name) and not has_validation and recipe != "rl":  # which compares rewards
            raise ProgramError("hyperparameters_invalid", f"{name} needs validation data", name)
    return knobs


def tell_unused(say: Reporter, knobs: Mapping[str, Any], *, has_validation: bool) -> None:
    """Warn of knobs that were set and need the validation data that are not there."""
    default = {knob.name: knob.default for knob in KNOBS}
    for name in OF_VALIDATION:
        if not has_validation and knobs.get(name, default[name]) != default[name]:
            say.warning(f"{name} {knobs[name]} changes nothing: there is no validation data", "not_used")


def open_device(say: Reporter, knobs: Mapping[str, Any], width: int) -> Device:
    """Choose the device and say which; every random choice from here on follows from the seed."""
    seed_all(knobs["seed"])
    device = choose_device(knobs["precision"], width)
    kind = "float32" if device.autocast_dtype is None else str(device.autocast_dtype).removeprefix("torch.")
    say.phase("device", f"device: {device.name}, {kind}: {device.reason}")
    return device


def loading_device(knobs: Mapping[str, Any], device: Device) -> torch.device:
    """The device, or the CPU where each process keeps a share only."""
    return torch.device("cpu") if is_wanted(knobs) else device.device


def training_dtype(method: str, device: Device) -> torch.dtype:
    """How weights are held: trained weights in float32, because bf16 loses small updates; frozen ones as computed."""
    return torch.float32 if method == "full" or device.autocast_dtype is None else device.autocast_dtype


def finish_order(
    context: ProgramContext, order: Order, metrics: Mapping[str, float], facts: Mapping[str, Any] | None = None
) -> None:
    """Write card, bundle and manifest of a tuned base; ``facts`` add to what the folder tells of itself."""
    finish(
        context,
        order.recipe,
        order.method,
        order.knobs,
        order.data_files,
        metrics,
        order.device,
        order.base,
        facts or {},
    )


def finish(
    context: ProgramContext,
    recipe: str,
    method: str,
    knobs: Mapping[str, Any],
    data_files: Sequence[Path],
    metrics: Mapping[str, float],
    device: Device,
    base: Path | None,
    more_facts: Mapping[str, Any] | None = None,
) -> None:
    """Write card, bundle and manifest and tell the summary."""
    model = context.output / "model"
    base_fingerprint = hash_folder(base) if base else None
    facts = {**model_facts(model), "base_fingerprint": base_fingerprint, "recipe": recipe, "method": method}
    facts |= more_facts or {}
    write_model_card(
        model,
        name=str(context.parameters.get("model_name") or "model"),
        recipe=recipe,
        method=method,
        lineage=context.parameters.get("lineage") or {},
        hyperparameters=knobs,
        facts=facts,
        metrics=metrics,
    )
    write_bundle(
        model,
        recipe=recipe,
        method=method,
        hyperparameters=knobs,
        data_files=data_files,
        base_fingerprint=base_fingerprint,
        reward_fingerprint=_reward_fingerprint(context.parameters.get("reward_model")),
        facts=facts,
        metrics=metrics,
        device_name=device.name,
    )
    _seal(context, facts, metrics, device)


def _reward_fingerprint(given: Any) -> dict[str, str] | None:
    """The hashes of the folders of a reward model, and of its adapter if it is one."""
    folders = {name: given[name] for name in ("model", "adapter") if given.get(name)} if given else {}
    return {name: hash_folder(Path(folder)) for name, folder in folders.items()} or None


def _seal(context: ProgramContext, facts: Mapping[str, Any], metrics: Mapping[str, float], device: Device) -> None:
    """Write the manifest, the last file of a finished run, and tell the summary."""
    manifest = write_manifest(context.output, "model", facts, metrics)
    size_bytes = sum(entry["size"] for entry in manifest["files"])
    context.report.artifact("output/model", f"{facts['format']}_model", size_bytes)
    context.report.phase("save", f"model saved to output/model ({size_bytes / 2**20:.1f} MiB)")
    context.report.summary({**metrics, "num_parameters": facts["num_parameters"], **device.peak_memory_mib()})
