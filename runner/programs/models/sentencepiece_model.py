"""A SentencePiece ``tokenizer.model`` as a tokenizer of the tokenizers library, read without the SentencePiece package.

The file is one protobuf message (``sentencepiece_model.proto``): the pieces, the training, how text is normalized.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from runner.contract.protobuf import fields_of
from runner.programs.lib.events import ProgramError

SPACE = "\u2581"
MAX_PIECES = 1_000_000
UNIGRAM, BPE = 1, 2
#: Types of pieces that are no ordinary text.
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
#: Numbers of fields: of the message, of a piece, of the two specs.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
PIECE, SCORE, TYPE = 1, 2, 3
MODEL_TYPE, BYTE_FALLBACK, EOS_ID = 3, 35, 42
CHARACTERS, DUMMY_PREFIX, REMOVE_SPACES = 2, 3, 4


@dataclass(frozen=True, slots=True)
class SentencePieces:
    """What a file says. ``pieces``: (text, score, type), in the order of their ids."""

    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    trainer: dict[int, Any] = field(default_factory=dict)
    normalizer: dict[int, Any] = field(default_factory=dict)


def read_pieces(data: bytes) -> SentencePieces:
    """The file's content. Raises ProgramError (``tokenizer_invalid``)."""
    found = SentencePieces()
    try:
        for number, value in fields_of(data):
            if number == PIECES:
                piece = dict(fields_of(value))
                score = struct.unpack("<f", piece[SCORE])[0] if SCORE in piece else 0.0
                found.pieces.append((piece[PIECE].decode(), score, piece.get(TYPE, 1)))
            elif number in (TRAINER, NORMALIZER):
                (found.trainer if number == TRAINER else found.normalizer).update(fields_of(value))
            if len(found.pieces) > MAX_PIECES:
                raise ValueError(f"more than {MAX_PIECES:,} pieces")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error) as error:
        raise refused(f"it is no SentencePiece model: {error}") from None
    if not found.pieces:
        raise refused("it is no SentencePiece model: it has no pieces")
    return found


def tokenizer_of(found: SentencePieces) -> Tokenizer:
    """The same tokenizer. Raises ProgramError for another algorithm than unigram and BPE."""
    kind, falls_back = found.trainer.get(MODEL_TYPE, UNIGRAM), bool(found.trainer.get(BYTE_FALLBACK, 0))
    unknown = unknown_token(found)
    has_prefix = bool(found.normalizer.get(DUMMY_PREFIX, 1))
    if kind == BPE:
        vocabulary = {text: index for index, (text, _, _) in enumerate(found.pieces)}
        merges = merges_of(found, vocabulary)
        model: Any = models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=falls_back)
    elif kind == UNIGRAM:
        scores = [(text, score) for text, score, _ in found.pieces]
        unknown_id = next((index for index, piece in enumerate(found.pieces) if piece[2] == UNKNOWN), None)
        model = models.Unigram(scores, unk_id=unknown_id, byte_fallback=falls_back)
    else:
        raise refused("its algorithm is neither unigram nor BPE; train one of those, or give a tokenizer.json")
    tokenizer = Tokenizer(model)
    prefix = [normalizers.Prepend(SPACE)] if has_prefix else []
    steps = [*text_steps(found.normalizer), *prefix, normalizers.Replace(" ", SPACE)]
    tokenizer.normalizer = normalizers.Sequence(steps)
    if kind == UNIGRAM:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if has_prefix else []),
        ]
    )
    special = [text for text, _, kind in found.pieces if kind in (UNKNOWN, CONTROL)]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text, _, kind in found.pieces if kind == USER_DEFINED])
    return tokenizer


def end_token(found: SentencePieces) -> str | None:
    """The piece that ends a text."""
    number = found.trainer.get(EOS_ID, 2)
    is_there = 0 <= number < len(found.pieces) and found.pieces[number][2] == CONTROL
    return found.pieces[number][0] if is_there else None


def unknown_token(found: SentencePieces) -> str | None:
    """The piece for what no other piece covers."""
    return next((text for text, _, kind in found.pieces if kind == UNKNOWN), None)


def text_steps(spec: Mapping[int, Any]) -> Iterator[Any]:
    """How text is cleaned before it is cut."""
    if spec.get(CHARACTERS):
        yield normalizers.Precompiled(spec[CHARACTERS])
    if spec.get(REMOVE_SPACES, 1):
        yield normalizers.Strip()
        yield normalizers.Replace(Regex(" {2,}"), " ")


def merges_of(found: SentencePieces, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """Pairs of pieces in the order in which BPE joins them: the pieces with the highest score first."""
    pairs = []
    for text, score, kind in found.pieces:
        if kind not in (1, USER_DEFINED) or len(text) < 2:
            continue
        cuts = ((text[:place], text[place:]) for place in range(1, len(text)))
        known = [cut for cut in cuts if cut[0] in vocabulary and cut[1] in vocabulary]
        pairs += [(-score, vocabulary[left], vocabulary[right], left, right) for left, right in known]
    return [(left, right) for *_, left, right in sorted(pairs)]


def refused(reason: str) -> ProgramError:
    """The tokenizer is at fault."""
    return ProgramError("tokenizer_invalid", f"tokenizer: {reason}", "tokenizer")
