"""Bad input: model folders. A request only names a folder; the import's program refuses what is in it."""

from __future__ import annotations

import json
import math
import shutil
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from runner.programs.lib.events import ProgramError
from runner.programs.models import import_model
from tests.cases.registry import Later, Scene, case
from tests.programs.recipes import make_context
from tests.programs.tiny_models import write_tiny_tokenizer

Spoil = Callable[[Path], Any]
CONFIG = {"architectures": ["Qwen2ForCausalLM"], "hidden_size": 4, "num_attention_heads": 2, "num_hidden_layers": 1}
INDEX, EMBEDDING = "model.safetensors.index.json", "model.embed_tokens.weight"


@cache
def good_folder() -> Path:
    """A folder that passes: a tokenizer, a configuration, and one tensor."""
    folder = Path(tempfile.mkdtemp())
    size = len(write_tiny_tokenizer(folder))
    write(folder / "config.json", {**CONFIG, "vocab_size": size})
    weights(folder, {EMBEDDING: (size, 4)})
    return folder


def write(path: Path, value: Any) -> None:
    """A JSON file."""
    path.write_text(json.dumps(value), encoding="utf-8")


def change(name: str, **values: Any) -> Spoil:
    """Other values in a JSON file."""
    return lambda folder: write(folder / name, {**json.loads((folder / name).read_text(encoding="utf-8")), **values})


def weights(folder: Path, shapes: dict[str, tuple[int, ...]], *, byte: bytes = b"\0", cut: int | None = None) -> None:
    """Tensors of one byte, repeated; ``cut``: so many bytes in place of all."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    data = byte * (end if cut is None else cut)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


def header_of(length: int, file_bytes: int) -> Spoil:
    """Weights whose header claims this length."""

    def spoil(folder: Path) -> None:
        with open(folder / "model.safetensors", "wb") as stream:
            stream.write(struct.pack("<Q", length))
            stream.truncate(file_bytes)  # a hole: nothing is written

    return spoil


def adapter(folder: Path) -> None:
    """An adapter of another rank than it says."""
    write(folder / "adapter_config.json", {"peft_type": "LORA", "r": 8})
    weights(folder, {"q.lora_A.weight": (16, 4)})


def long_config(folder: Path) -> None:
    """200 MiB, most of them a hole."""
    with open(folder / "config.json", "r+b") as stream:
        stream.truncate(200 << 20)


def only_a_pickle(folder: Path) -> None:
    """A zip with a pickle, its checksum wrong; nobody looks into it."""
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK\3\4 archive/data.pkl with a bad CRC")


def own_code(folder: Path) -> None:
    """A module, and a configuration that wants it."""
    (folder / "modeling_x.py").write_text("raise SystemExit", encoding="utf-8")
    change("config.json", auto_map={"AutoModel": "modeling_x.X"})(folder)


def gguf(folder: Path) -> None:
    """A GGUF file that counts 2**63 keys."""
    (folder / "x.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 2**63))


def without(*names: str) -> Spoil:
    """Some files less."""
    return lambda folder: [(folder / name).unlink() for name in names]


#: Case -> what is wrong with the folder.
REFUSED: dict[str, Spoil] = {
    "MODEL-002": without("config.json"),
    "MODEL-004": long_config,
    "MODEL-005": without("model.safetensors"),
    "MODEL-006": lambda folder: write(folder / INDEX, {"weight_map": {EMBEDDING: "model-00002-of-00002.safetensors"}}),
    "MODEL-007": lambda folder: write(folder / INDEX, {"metadata": {"total_size": 1}, "weight_map": {}}),
    "MODEL-009": header_of(2**63, 100),
    "MODEL-010": header_of(101 << 20, (101 << 20) + 100),
    "MODEL-013": lambda folder: weights(folder, {EMBEDDING: (2**40, 2**40)}, cut=16),
    "MODEL-018": only_a_pickle,
    "MODEL-020": own_code,
    "MODEL-022": change("config.json", hidden_size=2**31),
    "MODEL-023": change("config.json", num_hidden_layers=100_000),
    "MODEL-024": change("config.json", vocab_size=32_000),
    "MODEL-025": change("config.json", hidden_size=4096, num_attention_heads=7),
    "MODEL-027": change("config.json", architectures=["FooForX"]),
    "MODEL-028": without("tokenizer.json"),
    "MODEL-031": change("tokenizer_config.json", chat_template="{% for i in range(10**12) %}{% endfor %}"),
    "MODEL-033": adapter,
    "MODEL-035": gguf,
}


def taken_over(spoil: Spoil) -> ProgramError | None:
    """Imports a spoiled folder; the refusal. Nothing of it is kept where it is refused."""
    with tempfile.TemporaryDirectory() as place:
        folder, run = Path(place) / "model", Path(place) / "run"
        shutil.copytree(good_folder(), folder)
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        spoil(folder)
        context = make_context(run, {"source": "path", "location": str(folder)})
        try:
            import_model.main(context)
        except ProgramError as error:
            assert not (run / "output").exists()
            return error
    return None


def refused(spoil: Spoil) -> Any:
    """Imports a folder that is no good."""

    def send(scene: Scene) -> Any:
        error = taken_over(spoil)
        assert error is not None
        return Later(error.code, error.message)

    return send


for case_id, make in REFUSED.items():
    case(case_id)(refused(make))


@case("MODEL-037")
def weights_that_are_no_numbers(scene: Scene) -> Any:
    size = json.loads((good_folder() / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    assert taken_over(lambda folder: weights(folder, {EMBEDDING: (size, 4)}, byte=b"\xff")) is None
    return Later(None, "")
