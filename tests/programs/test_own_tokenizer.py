"""A user's own tokenizer for a new model: read in three forms, refused in words, with each checkpoint."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from runner.contract import folder
from runner.programs.lib.events import ProgramError
from runner.programs.lib.render import Renderer
from runner.programs.lib.tokenizer import train_tokenizer
from runner.programs.models.own_tokenizer import MAX_TOKENIZER_BYTES, take_tokenizer
from runner.programs.models.sentencepiece_model import BPE, UNIGRAM, read_pieces, tokenizer_of
from runner.programs.train import pretrain
from tests.programs.recipes import make_context
from tests.programs.test_pretrain import TEXT, parameters_of

#: Pieces of a small model: text, score, type (1 ordinary, 2 unknown, 3 control, 6 byte).
PIECES = [
    ("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("<0x0A>", 0.0, 6), ("▁the", -1.0, 1), ("▁t", -2.0, 1),
    ("he", -3.0, 1), ("▁", -4.0, 1), ("t", -5.0, 1), ("h", -6.0, 1), ("e", -7.0, 1),
]  # fmt: skip


def number(key: int, value: int) -> bytes:
    """A whole number of a protobuf message."""
    return varint(key << 3) + varint(value)


def part(key: int, value: bytes) -> bytes:
    """Bytes of a protobuf message."""
    return varint(key << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    """Seven bits a byte."""
    found = b""
    while value > 127:
        found += bytes([value & 127 | 128])
        value >>= 7
    return found + bytes([value])


def sentencepiece(kind: int, *, pieces: Any = PIECES, eos_id: int = 2) -> bytes:
    """A tokenizer.model as SentencePiece writes it, bytes that stand for unknown characters included."""
    body = b"".join(
        part(1, part(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score) + number(3, sort))
        for text, score, sort in pieces
    )
    return body + part(2, number(3, kind) + number(35, 1) + number(42, eos_id)) + part(3, number(4, 0))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer of our own making."""
    target = tmp_path_factory.mktemp("own")
    train_tokenizer([TEXT], 330, 64, target)
    return target


@pytest.mark.parametrize("kind", [UNIGRAM, BPE])
def test_a_sentencepiece_model_cuts_text_as_its_scores_say(kind: int) -> None:
    tokenizer = tokenizer_of(read_pieces(sentencepiece(kind)))
    found = tokenizer.encode("the he\nthe", add_special_tokens=False)
    assert found.tokens == ["▁the", "▁", "he", "<0x0A>", "t", "he"]
    assert tokenizer.decode(found.ids) == "the he\nthe"
    assert tokenizer.encode("</s>", add_special_tokens=False).tokens == ["</s>"]


def test_a_sentencepiece_file_becomes_a_package_whose_turns_end(tmp_path: Path) -> None:
    (tmp_path / "mine.model").write_bytes(sentencepiece(UNIGRAM))
    take_tokenizer(tmp_path / "mine.model", tmp_path / "made", 32)
    renderer = Renderer.from_folder(tmp_path / "made")
    assert (renderer.vocabulary_size, renderer.stop_token_ids) == (len(PIECES), [2])
    assert (tmp_path / "made" / "tokenizer.model").is_file()


def test_a_tokenizer_json_alone_gets_the_end_that_its_vocabulary_has(own: Path, tmp_path: Path) -> None:
    take_tokenizer(own / "tokenizer.json", tmp_path / "made", 32)
    assert json.loads((tmp_path / "made" / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"


def size_of(own: Path) -> int:
    """Its tokens; the text has not enough words for all that were asked for."""
    return Renderer.from_folder(own).vocabulary_size


def broken(source: Path, case: str) -> Path:
    """A tokenizer that is no good."""
    if case == "garbage":
        (source / "tokenizer.model").write_bytes(b"\x80\x04\x95pickle")
    elif case == "word model":
        (source / "tokenizer.model").write_bytes(sentencepiece(3))
    elif case == "no end":
        (source / "tokenizer.model").write_bytes(sentencepiece(UNIGRAM, eos_id=0))
    elif case == "code":
        (source / "tokenizer.model").write_bytes(sentencepiece(UNIGRAM))
        (source / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["mine.Tokenizer", null]}}')
    elif case == "link":
        (source / "tokenizer.json").symlink_to("/etc/passwd")
    elif case == "large":
        with open(source / "tokenizer.model", "wb") as stream:
            stream.truncate(MAX_TOKENIZER_BYTES + 1)
    elif case == "template":
        (source / "tokenizer.model").write_bytes(sentencepiece(UNIGRAM))
        (source / "tokenizer_config.json").write_text('{"eos_token": "</s>", "chat_template": "{{ \'x\' * 10**12 }}"}')
    return source


@pytest.mark.parametrize(
    ("case", "code"),
    [
        ("garbage", "tokenizer_invalid"),
        ("word model", "tokenizer_invalid"),
        ("no end", "tokenizer_invalid"),
        ("code", "remote_code_not_allowed"),
        ("link", "tokenizer_missing"),
        ("large", "tokenizer_invalid"),
        ("template", "unsafe_template"),
        ("empty", "tokenizer_missing"),
    ],
)
def test_what_is_no_harmless_tokenizer_is_refused(tmp_path: Path, case: str, code: str) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(ProgramError) as refusal:
        take_tokenizer(broken(tmp_path / "source", case), tmp_path / "made", 32)
    assert (refusal.value.code, refusal.value.field) == (code, "tokenizer")


def test_a_new_model_is_made_for_the_tokenizer_and_its_checkpoints_carry_it(own: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(TEXT, encoding="utf-8")
    asked = {"vocab_size": None, "max_steps": 2, "save_steps": 1}
    context = make_context(tmp_path / "run", {**parameters_of(corpus, **asked), "tokenizer": str(own)})
    pretrain.main(context)
    wanted = Renderer.from_folder(own).render_spec["tokenizer_sha256"]
    run = tmp_path / "run"
    for place in (run / folder.CHECKPOINTS / "step-00000001" / "tokenizer", run / folder.OUTPUT / "model"):
        assert Renderer.from_folder(place).render_spec["tokenizer_sha256"] == wanted
    assert json.loads((run / folder.OUTPUT / "model" / "config.json").read_text())["vocab_size"] == size_of(own)


def test_a_vocabulary_of_another_size_is_a_contradiction(own: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(TEXT, encoding="utf-8")
    context = make_context(tmp_path / "run", {**parameters_of(corpus), "tokenizer": str(own)})
    with pytest.raises(ProgramError, match=f"{size_of(own)} tokens, not 320") as refusal:
        pretrain.main(context)
    assert refusal.value.field == "vocab_size"
