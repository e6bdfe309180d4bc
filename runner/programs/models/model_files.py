"""What a model folder from outside may hold: data that every loader understands, and nothing that runs code."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runner.programs.lib.events import ProgramError
from runner.programs.lib.render import Renderer

#: The files of a model, at the top of its folder. Everything else stays behind.
MODEL_FILE_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model", "LICENSE*", "README.md")
#: What a tokenizer may consist of.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "tokenizer.model",
    "generation_config.json",
)  # fmt: skip
#: Formats that run code when they are loaded.
PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")


def is_model_file(name: str) -> bool:
    """Whether a file name at the top of a model folder is taken over."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in MODEL_FILE_PATTERNS)


def is_adapter(folder: Path) -> bool:
    """A LoRA adapter, which needs a base model."""
    return (folder / "adapter_config.json").is_file()


def model_files(folder: Path) -> list[Path]:
    """The files of a model folder that are taken over, by name."""
    return [path for path in sorted(folder.iterdir()) if path.is_file() and is_model_file(path.name)]


def pickle_names(names: list[str]) -> list[str]:
    """Those of the names which are pickles."""
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in PICKLE_PATTERNS)]


def check_model_folder(folder: Path, *, allow_pickles_beside: bool) -> None:
    """Raise ProgramError (field ``location``) for the first thing that makes a folder no usable, harmless model.

    ``allow_pickles_beside``: pickles may lie beside safetensors, because they are not copied.
    """
    if not folder.is_dir():
        raise _refused("folder_missing", f"{folder} is no folder.")
    _refuse_links_that_leave(folder)
    if is_adapter(folder):
        _refuse_code(folder)
        _check_weights(folder, allow_pickles_beside)
        _check_adapter(folder)
        return
    config = _read_json(folder / "config.json")
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise _refused("config_invalid", "config.json names no architecture under 'architectures'.")
    _refuse_code(folder)
    _check_weights(folder, allow_pickles_beside)
    _check_tokenizer(folder)


def refuse_without_safetensors(names: list[str]) -> None:
    """Raise ProgramError where a list of file names holds no safetensors weights."""
    if any(name.endswith(".safetensors") for name in names):
        return
    pickles = pickle_names(names)
    found = f"only pickles ({', '.join(pickles[:3])}), which run code when loaded" if pickles else "no weights"
    raise _refused(
        "weights_missing",
        f"The model has {found}; weights in safetensors are needed. Convert it: load it with transformers and call "
        "save_pretrained(folder), which writes model.safetensors.",
    )


def _refuse_links_that_leave(folder: Path) -> None:
    root = folder.resolve()
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise _refused(
                "link_refused",
                f"{path.relative_to(folder)} is a link to a place outside the folder. Copy the files themselves "
                "(cp -rL) and import the copy.",
            )


def _refuse_code(folder: Path) -> None:
    for path in sorted(folder.glob("*.json")):
        if path.name.endswith(".index.json"):
            continue
        reason = next(_code_in(_read_json(path, must_be_object=False)), None)
        if reason:
            raise _refused(
                "code_refused",
                f"{path.name} asks for {reason}: the model wants to run Python code of its own. Only architectures "
                "that are part of transformers are taken over.",
            )


def _code_in(value: Any) -> Iterator[str]:
    """Settings, at any depth, that make loaders import code from the model's folder."""
    if isinstance(value, dict):
        if value.get("auto_map"):
            yield "auto_map"
        if value.get("trust_remote_code"):
            yield "trust_remote_code"
    # A tokenizer's vocabulary is large and flat; only short lists and nested settings can hold such a key.
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(item, dict | list):
            yield from _code_in(item)


def _check_weights(folder: Path, allow_pickles_beside: bool) -> None:
    names = [path.name for path in folder.iterdir()]
    refuse_without_safetensors(names)
    pickles = pickle_names(names)
    if pickles and not allow_pickles_beside:
        raise _refused(
            "pickle_refused",
            f"The folder holds {', '.join(pickles[:3])}: pickles run code when they are loaded. Remove them; the "
            "weights are in safetensors already.",
        )
    keys_of_file = {path.name: _tensor_names(path) for path in sorted(folder.glob("*.safetensors"))}
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    for tensor, file in _read_json(index).get("weight_map", {}).items():
        if file not in keys_of_file:
            raise _refused("weights_missing", f"{index.name} names {file}, which is not in the folder.")
        if tensor not in keys_of_file[file]:
            raise _refused("weights_missing", f"{index.name} says that {file} holds {tensor}, but it does not.")


def _check_adapter(folder: Path) -> None:
    """The adapter's rank is that of its tensors."""
    # Late: the check of a wrong config needs no numpy.
    from safetensors import safe_open

    config = _read_json(folder / "adapter_config.json")
    rank, patterns = config.get("r"), config.get("rank_pattern") or {}
    if config.get("peft_type") != "LORA" or not isinstance(rank, int) or rank < 1:
        raise _refused("config_invalid", "adapter_config.json needs peft_type LORA and a rank r of 1 or more.")
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), framework="numpy") as stream:
            for name in sorted(stream.keys()):
                shape = stream.get_slice(name).get_shape() if name.endswith("lora_A.weight") else None
                if shape is not None and not patterns and shape[0] != rank:
                    raise _refused(
                        "weights_mismatch", f"adapter_config.json says r {rank}, but {name} has the rank {shape[0]}."
                    )


def _tensor_names(path: Path) -> set[str]:
    """The names in a safetensors file whose header is sound and whose declared bytes are all there."""
    # Late: the check of a wrong config needs no numpy.
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as stream:
            return set(stream.keys())
    except (SafetensorError, OSError) as error:
        raise _refused(
            "weights_damaged",
            f"{path.name} ({path.stat().st_size} bytes) is damaged or cut off: {error}. Copy or download it again.",
        ) from None


def _check_tokenizer(folder: Path) -> None:
    """Read tokenizer and template the way training and serving will."""
    try:
        Renderer.from_folder(folder)
    except ProgramError as error:
        raise _refused(error.code, error.message) from None
    except Exception as error:  # the tokenizers library has no exception class of its own
        raise _refused("tokenizer_invalid", f"tokenizer.json can not be read: {error}.") from error


def _read_json(path: Path, must_be_object: bool = True) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = (
            "This is a LoRA adapter: import its base model." if (path.parent / "adapter_config.json").exists() else ""
        )
        raise _refused("config_missing", f"The folder holds no {path.name}. {hint}".strip()) from None
    except ValueError as error:
        raise _refused("config_invalid", f"{path.name} is not JSON: {error}.") from None
    if must_be_object and not isinstance(value, dict):
        raise _refused("config_invalid", f"{path.name} must be a JSON object.")
    return value


def _refused(code: str, message: str) -> ProgramError:
    return ProgramError(code, message, field="location")
