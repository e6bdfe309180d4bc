"""What a model folder from outside may hold: data that every loader understands, and nothing that runs code."""

from __future__ import annotations

import fnmatch
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runner.programs.lib.events import ProgramError
from runner.programs.lib.render import Renderer, distrusted
from runner.programs.models.safetensors_header import Tensor, read_header

#: The files of a model, at the top of its folder. Everything else stays behind.
MODEL_FILE_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model", "LICENSE*", "README.md")
#: What a tokenizer may consist of.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "tokenizer.model",
    "generation_config.json",
)  # fmt: skip
#: Formats that run code when they are loaded.
PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")

#: What is read of a JSON file, in bytes: configurations are small, vocabularies are not.
MAX_CONFIG_BYTES = 10 << 20
MAX_JSON_BYTES = 256 << 20
MAX_GGUF_ENTRIES = 1_000_000
#: Size in a configuration -> the largest that is believed.
LARGEST = {
    "hidden_size": 1 << 18,
    "intermediate_size": 1 << 21,
    "num_hidden_layers": 4096,
    "num_attention_heads": 1 << 14,
    "num_key_value_heads": 1 << 14,
    "vocab_size": 1 << 24,
    "max_position_embeddings": 1 << 30,
    "head_dim": 1 << 14,
    **dict.fromkeys(("d_model", "n_embd"), 1 << 18),
    **dict.fromkeys(("d_ff", "n_inner"), 1 << 21),
    **dict.fromkeys(("num_layers", "num_decoder_layers", "n_layer"), 4096),
    **dict.fromkeys(("num_heads", "n_head", "d_kv"), 1 << 14),
    "n_positions": 1 << 30,
}
#: How the table of token vectors is called by the architectures of transformers.
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "shared.weight")


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
        refuse_code(folder)
        _check_weights(folder, allow_pickles_beside)
        _check_adapter(folder)
        return
    config = _read_json(folder / "config.json")
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise _refused("config_invalid", "config.json names no architecture under 'architectures'.")
    refuse_code(folder)
    _check_architecture(architectures[0])
    _check_shape(config)
    tensors = _check_weights(folder, allow_pickles_beside)
    _check_embedding(config, tensors)
    _check_tokenizer(folder)


def refuse_without_safetensors(names: list[str]) -> None:
    """Raise ProgramError where a list of file names holds no safetensors weights."""
    if any(name.endswith(".safetensors") for name in names):
        return
    pickles = pickle_names(names)
    found = f"only pickles ({', '.join(pickles[:3])}), which run code when loaded" if pickles else "no weights"
    raise _refused(
        "pickle_not_allowed" if pickles else "missing_file",
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


def refuse_code(folder: Path) -> None:
    """Raise ProgramError where a JSON file in the folder makes loaders import Python code from it."""
    for path in sorted(folder.glob("*.json")):
        if path.name.endswith(".index.json"):
            continue
        reason = next(_code_in(_read_json(path, must_be_object=False)), None)
        if reason:
            modules = ", ".join(sorted(module.name for module in folder.glob("*.py"))[:3])
            raise _refused(
                "remote_code_not_allowed",
                f"{path.name} asks for {reason}: the model wants to run Python code of its own"
                f"{f' ({modules})' if modules else ''}. Only architectures that are part of transformers are taken "
                "over.",
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


def _check_architecture(name: str) -> None:
    # Late: the check of a missing config needs no transformers, which takes a second.
    import transformers

    if name not in dir(transformers):  # looking for the name, unlike getting it, imports no model
        raise _refused(
            "unsupported_architecture",
            f"config.json names the architecture {name}, which transformers {transformers.__version__} does not have.",
        )


def _check_shape(config: Mapping[str, Any]) -> None:
    """The sizes in a configuration are such as a model can have."""
    for name, most in LARGEST.items():
        size = config.get(name)
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= most):
            raise _refused("out_of_range", f"config.json: {name} {size!r} is no whole number from 1 to {most:,}.")
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if hidden and heads and config.get("head_dim") is None and hidden % heads:
        message = f"config.json: num_attention_heads {heads} does not divide hidden_size {hidden}."
        raise _refused("out_of_range", message)


def _check_embedding(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """The table of token vectors has a row for each token that the configuration counts."""
    for name, tensor in tensors.items():
        size = config.get("vocab_size")
        if name.endswith(EMBEDDINGS) and size is not None and tensor.shape and tensor.shape[0] != size:
            raise _refused(
                "shape_mismatch", f"config.json says vocab_size {size}, but {name} has {tensor.shape[0]} rows."
            )


def _check_weights(folder: Path, allow_pickles_beside: bool) -> dict[str, Tensor]:
    """All tensors by name."""
    names = [path.name for path in folder.iterdir()]
    _check_gguf_headers(folder)
    refuse_without_safetensors(names)
    pickles = pickle_names(names)
    if pickles and not allow_pickles_beside:
        raise _refused(
            "pickle_not_allowed",
            f"The folder holds {', '.join(pickles[:3])}: pickles run code when they are loaded. Remove them; the "
            "weights are in safetensors already.",
        )
    tensors_of_file = {path.name: read_header(path) for path in sorted(folder.glob("*.safetensors"))}
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        _check_index(index, tensors_of_file)
    return {name: tensor for tensors in tensors_of_file.values() for name, tensor in tensors.items()}


def _check_index(index: Path, tensors_of_file: Mapping[str, Mapping[str, Tensor]]) -> None:
    described = _read_json(index)
    for tensor, file in described.get("weight_map", {}).items():
        if file not in tensors_of_file:
            raise _refused("missing_file", f"{index.name} names {file}, which is not in the folder.")
        if tensor not in tensors_of_file[file]:
            raise _refused("missing_file", f"{index.name} says that {file} holds {tensor}, but it does not.")
    total = (described.get("metadata") or {}).get("total_size")
    held = sum(tensor.size_bytes for tensors in tensors_of_file.values() for tensor in tensors.values())
    if total is not None and total != held:
        raise _refused("size_mismatch", f"{index.name} says total_size {total}, but the files hold {held} bytes.")


def _check_adapter(folder: Path) -> None:
    """The adapter's rank is that of its tensors."""
    config = _read_json(folder / "adapter_config.json")
    rank, patterns = config.get("r"), config.get("rank_pattern") or {}
    if config.get("peft_type") != "LORA" or not isinstance(rank, int) or rank < 1:
        raise _refused("config_invalid", "adapter_config.json needs peft_type LORA and a rank r of 1 or more.")
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in sorted(read_header(path).items()):
            if name.endswith("lora_A.weight") and not patterns and tensor.shape[:1] != (rank,):
                raise _refused(
                    "shape_mismatch", f"adapter_config.json says r {rank}, but {name} has the shape {tensor.shape}."
                )


def _check_tokenizer(folder: Path) -> None:
    """Read tokenizer and template the way training and serving will."""
    try:
        with distrusted():
            Renderer.from_folder(folder).try_template()
    except ProgramError as error:
        code = "missing_file" if error.code == "tokenizer_missing" else error.code
        raise _refused(code, error.message) from None
    except Exception as error:  # the tokenizers library has no exception class of its own
        raise _refused("tokenizer_invalid", f"tokenizer.json can not be read: {error}.") from error


def _read_json(path: Path, must_be_object: bool = True) -> Any:
    most = MAX_CONFIG_BYTES if "config" in path.name else MAX_JSON_BYTES
    try:
        if path.stat().st_size > most:
            message = f"{path.name} has {path.stat().st_size:,} bytes; at most {most:,} are read."
            raise _refused("file_too_large", message)
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = (
            "This is a LoRA adapter: import its base model." if (path.parent / "adapter_config.json").exists() else ""
        )
        raise _refused("missing_file", f"The folder holds no {path.name}. {hint}".strip()) from None
    except ValueError as error:
        raise _refused("config_invalid", f"{path.name} is not JSON: {error}.") from None
    if must_be_object and not isinstance(value, dict):
        raise _refused("config_invalid", f"{path.name} must be a JSON object.")
    return value


def _check_gguf_headers(folder: Path) -> None:
    """GGUF files may lie beside safetensors (they stay behind), but no damaged ones."""
    for path in sorted(folder.glob("*.gguf")):
        with open(path, "rb") as stream:
            start = stream.read(24)
        if len(start) < 24 or start[:4] != b"GGUF":
            raise _refused("corrupt_file", f"{path.name} is no GGUF file: it does not start like one.")
        num_tensors, num_keys = struct.unpack("<QQ", start[8:])
        if max(num_tensors, num_keys) > MAX_GGUF_ENTRIES:
            message = f"{path.name}: its GGUF header counts {num_tensors} tensors and {num_keys} keys."
            raise _refused("corrupt_file", f"{message} At most {MAX_GGUF_ENTRIES:,} are believed.")


def _refused(code: str, message: str) -> ProgramError:
    return ProgramError(code, message, field="location")
