"""What a finished training says about itself: ``model_card.md`` for people, ``bundle.json`` for a replay."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from runner.contract.folder import write_json_durably
from runner.programs.lib.artifacts import hash_file

#: What a result may follow from, as far as it is installed.
PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "peft",
    "bitsandbytes",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
    "jinja2",
)


def write_bundle(
    model_folder: Path,
    *,
    recipe: str,
    method: str,
    hyperparameters: Mapping[str, Any],
    data_files: Iterable[Path],
    base_fingerprint: str | None,
    reward_fingerprint: Mapping[str, str] | None,
    facts: Mapping[str, Any],
    metrics: Mapping[str, Any],
    device_name: str,
) -> None:
    """Write ``bundle.json``: resolved configuration and the hashes of code, data, base, render spec and artifacts."""
    model_files = sorted(path for path in model_folder.iterdir() if path.is_file())
    write_json_durably(
        model_folder / "bundle.json",
        {
            "recipe": recipe,
            "method": method,
            "hyperparameters": dict(hyperparameters),
            "seed": hyperparameters["seed"],
            "code_sha256": code_hash(),
            "data_sha256": {path.name: hash_file(path) for path in data_files},
            "base_fingerprint": base_fingerprint,
            "reward_fingerprint": reward_fingerprint,
            "render_hash": facts["render_hash"],
            "packages": packages(),
            "hardware": {"device": device_name, "cpu_count": os.cpu_count(), "machine": os.uname().machine},
            "metrics": dict(metrics),
            "artifact_sha256": {path.name: hash_file(path) for path in model_files},
        },
    )


def write_model_card(
    model_folder: Path,
    *,
    name: str,
    recipe: str,
    method: str,
    lineage: Mapping[str, Any],
    hyperparameters: Mapping[str, Any],
    facts: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> None:
    """Write ``model_card.md`` from the lineage, the facts and the metrics of a run."""
    what = "An adapter (LoRA); it needs its base model." if facts["format"] == "adapter" else "A whole model."
    sections = (
        ("Where it comes from", lineage),
        ("What it is", facts),
        ("How well it learned", metrics),
        ("Hyperparameters", hyperparameters),
    )
    lines = [f"# {name}", "", f"{what} Trained with the recipe `{recipe}`, method `{method}`.", ""]
    for title, values in sections:
        lines += [f"## {title}", "", "| | |", "|---|---|"]
        lines += [f"| {_cell(key)} | {_cell(value)} |" for key, value in values.items()]
        lines.append("")
    (model_folder / "README.md").unlink(missing_ok=True)  # PEFT's own, an empty form
    (model_folder / "model_card.md").write_text("\n".join(lines), encoding="utf-8")


def packages() -> dict[str, str]:
    """The versions of Python and of what is installed of ``PACKAGES``."""
    installed = {name: version for name in PACKAGES if (version := _version(name)) is not None}
    return {"python": sys.version.split()[0], **installed}


def code_hash() -> str:
    """sha256 over the sources of the programs and the contract: the same hash is the same code."""
    runner = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for part in ("contract", "programs"):
        for path in sorted((runner / part).rglob("*.py")):
            digest.update(f"{path.relative_to(runner).as_posix()}\0{hash_file(path)}\n".encode())
    return digest.hexdigest()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cell(value: Any) -> str:
    text = (
        f"{value:.6g}"
        if isinstance(value, float)
        else ", ".join(map(str, value))
        if isinstance(value, list)
        else str(value)
    )
    return text.replace("|", "\\|").replace("\n", " ")
