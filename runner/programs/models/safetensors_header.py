"""What a safetensors file says of itself, read and checked without loading a tensor."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.programs.lib.events import ProgramError

#: As in the library that loads the files.
MAX_HEADER_BYTES = 100_000_000
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6,
    "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """Shape and bytes of one tensor."""

    shape: tuple[int, ...]
    size_bytes: int


def read_header(path: Path) -> dict[str, Tensor]:
    """Name -> tensor of a file whose header is sound and whose bytes are all there.

    Raises ProgramError (``corrupt_file``).
    """
    header, data_bytes = _header_of(path)
    tensors, ends = {}, 0
    spans = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        tensor, start = _tensor_of(path, name, entry)
        tensors[name] = tensor
        spans.append((start, start + tensor.size_bytes, name))
    for start, end, name in sorted(spans):
        if start != ends:
            raise _corrupt(path, f"the bytes of {name} begin at {start}, not at {ends}")
        ends = end
    if ends != data_bytes:
        raise _corrupt(path, f"its header speaks of {ends:,} bytes of tensors, it has {data_bytes:,}")
    return tensors


def _header_of(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and how many bytes follow it."""
    size = path.stat().st_size
    with open(path, "rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if length > MAX_HEADER_BYTES:
            raise _corrupt(path, f"its header claims {length:,} bytes; more than 100 MB are never read")
        if length < 2 or length > size - 8:
            raise _corrupt(path, "its header is not whole")
        try:
            header = json.loads(stream.read(length))
        except (ValueError, RecursionError):
            raise _corrupt(path, "its header is not JSON") from None
    if not isinstance(header, dict):
        raise _corrupt(path, "its header is no JSON object")
    return header, size - 8 - length


def _tensor_of(path: Path, name: str, entry: Any) -> tuple[Tensor, int]:
    """A tensor of a header, and where its bytes begin."""
    entry = entry if isinstance(entry, dict) else {}
    bits, shape, span = BITS.get(str(entry.get("dtype"))), entry.get("shape"), entry.get("data_offsets")
    if bits is None:
        raise _corrupt(path, f"the header gives {name} the type {entry.get('dtype')!r}, which there is not")
    if not _are_sizes(shape) or not _are_sizes(span) or len(span) != 2:
        raise _corrupt(path, f"the header gives {name} no shape or no place")
    size_bytes = math.prod(shape) * bits // 8
    if size_bytes > path.stat().st_size:
        raise _corrupt(path, f"the header gives {name} the shape {shape}, which needs more bytes than the file has")
    if span[1] - span[0] != size_bytes:
        raise _corrupt(path, f"{name} of the shape {shape} needs {size_bytes:,} bytes and has {span[1] - span[0]:,}")
    return Tensor(tuple(shape), size_bytes), span[0]


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def _corrupt(path: Path, what: str) -> ProgramError:
    return ProgramError(
        "corrupt_file",
        f"{path.name} ({path.stat().st_size} bytes) is damaged or cut off: {what}. Copy or download it again.",
        field="location",
    )
