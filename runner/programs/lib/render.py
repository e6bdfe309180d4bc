"""The one place where a conversation becomes tokens: training, evaluation and serving all come here.

Template and tokenizer are read from a model folder without transformers, so a start costs milliseconds; a test
compares the token ids with transformers' own ``apply_chat_template``. Special-token text that a user wrote into a
message stays text: it is never encoded as the special token (plain Hugging Face code would do that).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Encoding, Tokenizer

from runner.contract.folder import write_json_durably
from runner.programs.lib.events import ProgramError
from runner.programs.lib.golden import GOLDEN_CONVERSATIONS
from runner.programs.lib.marks import Message, Restore, protected
from runner.programs.lib.tools import CALLS, TOOLS, without

#: Given to a base model that has no template (ChatML). The end marker is ``<|im_end|>``; a tokenizer without that
#: token gets its own end-of-text token in its place, so that a turn always ends in one token.
DEFAULT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)

#: CPU time in which a template must have rendered the golden conversations.
MAX_TEMPLATE_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as tokens. ``is_label[i]``: token i is learned (assistant text and the token that ends it)."""

    token_ids: list[int]
    is_label: list[bool]


class Renderer:
    """Template, special tokens and stop ids of one model."""

    def __init__(self, tokenizer: Tokenizer, template: str, tokens: Mapping[str, str], stop_ids: Sequence[int]) -> None:
        """``tokens``: the named special tokens (``bos_token``, ``eos_token`` ...) that a template may use."""
        self._tokenizer = tokenizer
        self._template_text = template
        self._tokens = dict(tokens)
        self._template = compile_template(template)
        added = tokenizer.get_added_tokens_decoder().items()
        self._specials: dict[str, int] = {token.content: token_id for token_id, token in added if token.special}
        self.stop_token_ids: list[int] = sorted({*stop_ids, *self._turn_end_ids()})
        if not self.stop_token_ids:
            raise ProgramError("tokenizer_invalid", "the tokenizer has no token that ends a turn (no eos_token)")
        self.render_spec: dict[str, Any] = {
            "chat_template": template,
            "special_tokens": dict(sorted(self._specials.items())),
            "named_tokens": dict(sorted(self._tokens.items())),
            "stop_token_ids": self.stop_token_ids,
            "tokenizer_sha256": hashlib.sha256(tokenizer.to_str().encode()).hexdigest(),
        }
        canonical = json.dumps(self.render_spec, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        self.render_hash: str = hashlib.sha256(canonical.encode()).hexdigest()

    @classmethod
    def from_folder(cls, folder: Path | str) -> Renderer:
        """The renderer of a model or adapter folder. Raises ProgramError where there is no usable tokenizer."""
        path = Path(folder)
        if not (path / "tokenizer.json").is_file():
            raise ProgramError("tokenizer_missing", f"{path} has no tokenizer.json; save it with a fast tokenizer")
        tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        config = _json(path / "tokenizer_config.json")
        tokens = _named_tokens({**_json(path / "special_tokens_map.json"), **config})
        template = _template_of(path, config) or _default_template(tokenizer, tokens)
        stop_ids = [*_eos_ids(_json(path / "generation_config.json")), *_eos_ids(_json(path / "config.json"))]
        eos_id = tokenizer.token_to_id(tokens["eos_token"]) if "eos_token" in tokens else None
        return cls(tokenizer, template, tokens, stop_ids if eos_id is None else [*stop_ids, eos_id])

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens, added ones included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def end_of_text_id(self) -> int:
        """The token between documents of pretraining: ``<|endoftext|>``, else the first token that stops."""
        token_id = self._tokenizer.token_to_id("<|endoftext|>")
        return self.stop_token_ids[0] if token_id is None else int(token_id)

    @property
    def padding_id(self) -> int:
        """A token that no text holds where it is padded: the pad token, else the one between documents."""
        token_id = self._tokenizer.token_to_id(self._tokens.get("pad_token", ""))
        return self.end_of_text_id if token_id is None else int(token_id)

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation up to where the assistant begins to answer. Raises ProgramError."""
        self._demand_tools(messages)
        safe, restore = protected(messages, self._specials)
        token_ids, _ = self._encode(self._render(safe, for_answer=True), restore)
        return token_ids

    def encode_conversation(self, messages: Sequence[Message]) -> Rendered:
        """Token ids of a whole conversation and which of them are learned. Raises ProgramError.

        The template is rendered once for each prefix that ends before or after an assistant turn, so the mask is right
        for any template; where a template rewrites earlier turns (it drops their reasoning), only the turns that it
        shows unchanged are learned.
        """
        text, restore, spans = self.with_answers(messages)
        token_ids, offsets = self._encode(text, restore)
        is_label = [False] * len(token_ids)
        for start, end in spans:
            self._mark(token_ids, offsets, is_label, (len(restore(text[:start])), len(restore(text[:end]))))
        return Rendered(token_ids, is_label)

    def with_answers(self, messages: Sequence[Message]) -> tuple[str, Restore, list[tuple[int, int]]]:
        """A conversation as text, in which marks stand for special-token text of users; how to put that back; and the
        characters of the text that are learned, with the token that ends each answer. Raises ProgramError.
        """
        self._demand_tools(messages)
        safe, restore = protected(messages, self._specials)
        text = self._render(safe)
        numbers = [number for number, message in enumerate(safe) if message["role"] == "assistant"]
        return text, restore, [self._answer_span(safe, number, text) for number in numbers]

    def encode_document(self, text: str) -> Rendered:
        """Token ids of plain text and of the token that ends it, all of them learned."""
        end_id = self._tokenizer.token_to_id(self._tokens.get("eos_token", ""))
        token_ids = [*self.encode_text(text), self.end_of_text_id if end_id is None else int(end_id)]
        return Rendered(token_ids, [True] * len(token_ids))

    def encode_text(self, text: str) -> list[int]:
        """Token ids of plain text; special-token text in it stays text."""
        return list(self._encode_plain(text).ids)

    def try_template(self) -> None:
        """Render the golden conversations. A template may refuse one (some want no system turn), which harms nobody."""
        for messages in GOLDEN_CONVERSATIONS:
            try:
                self._render(messages, for_answer=True)
            except ProgramError as error:
                if isinstance(error.__context__, SecurityError):
                    raise error.__context__ from None

    def apply_template(self, messages: Sequence[Message]) -> str:
        """The prompt as text, as the template writes it (special-token text of users is not marked here)."""
        return self._render(messages, for_answer=True)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of tokens, special tokens left out."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def stop_texts(self) -> list[str]:
        """The tokens that end an answer, as they are written."""
        return [str(self._tokenizer.id_to_token(token_id)) for token_id in self.stop_token_ids]

    def save(self, source: Path, target: Path) -> None:
        """Copy the tokenizer package of ``source`` to ``target`` so that ``target`` renders with the same hash."""
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)
        config = _json(target / "tokenizer_config.json")
        if _template_of(target, config) is None:
            write_json_durably(target / "tokenizer_config.json", {**config, "chat_template": self._template_text})
        generation = {**_json(source / "generation_config.json"), **_json(target / "generation_config.json")}
        write_json_durably(target / "generation_config.json", {**generation, "eos_token_id": self.stop_token_ids})

    def _render(self, messages: Sequence[Message], *, for_answer: bool = False) -> str:
        offered = messages[0].get(TOOLS) if messages else None
        turns = without(messages, TOOLS) if offered else messages
        try:
            return self._template.render(
                messages=turns, tools=offered, documents=None, add_generation_prompt=for_answer, **self._tokens
            )
        except jinja2.TemplateError as error:
            raise ProgramError("template_failed", f"the chat template refuses this conversation: {error}") from None

    def _demand_tools(self, messages: Sequence[Message]) -> None:
        """Raises ProgramError where the template leaves tools, or calls of them, out without a word."""
        for key in (TOOLS, CALLS):
            if any(message.get(key) for message in messages):
                shown, left_out = self._render(messages), self._render(without(messages, key))
                if shown == left_out:
                    message = f"the chat template of this model shows no {key}, which the data has: take another base"
                    raise ProgramError("tools_not_shown", message, key)

    def _encode(self, text: str, restore: Restore) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids and their character offsets in the restored text."""
        if not restore.is_needed:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
            return list(encoding.ids), list(encoding.offsets)
        token_ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        position = 0
        for part, special_id in self._split_at_specials(text):
            whole = restore(part)
            if special_id is not None:
                token_ids.append(special_id)
                offsets.append((position, position + len(whole)))
            else:
                encoding = self._encode_plain(whole)
                token_ids += encoding.ids
                offsets += [(position + start, position + end) for start, end in encoding.offsets]
            position += len(whole)
        return token_ids, offsets

    def _split_at_specials(self, text: str) -> list[tuple[str, int | None]]:
        """The text cut at the special tokens that the template wrote, as the tokenizer itself cuts it."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        special_ids = set(self._specials.values())
        pairs = zip(encoding.ids, encoding.offsets, strict=True)
        cuts = [(start, end, token_id) for token_id, (start, end) in pairs if token_id in special_ids]
        parts: list[tuple[str, int | None]] = []
        position = 0
        for start, end, token_id in cuts:
            parts += [(text[position:start], None), (text[start:end], token_id)]
            position = end
        return [part for part in [*parts, (text[position:], None)] if part[0]]

    def _encode_plain(self, text: str) -> Encoding:
        self._tokenizer.encode_special_tokens = True
        try:
            return self._tokenizer.encode(text, add_special_tokens=False)
        finally:
            self._tokenizer.encode_special_tokens = False

    def _answer_span(self, messages: Sequence[Message], number: int, text: str) -> tuple[int, int]:
        """Characters of turn ``number`` in the whole rendering; empty where the template shows the turn otherwise."""
        before = self._render(messages[:number], for_answer=True)
        after = self._render(messages[: number + 1])
        is_last = number == len(messages) - 1
        if not text.startswith(after) and not is_last:
            return 0, 0
        # A generation prompt may hold more than the history shows (an empty reasoning block): learn from there on.
        return _common_prefix(before, after), len(after)

    def _mark(
        self, token_ids: list[int], offsets: list[tuple[int, int]], is_label: list[bool], span: tuple[int, int]
    ) -> None:
        """Label the tokens of a span up to and with the first stop token."""
        for index, (start, end) in enumerate(offsets):
            if start >= span[1]:
                return
            if end > span[0]:
                is_label[index] = True
                if token_ids[index] in self.stop_token_ids:
                    return

    def _turn_end_ids(self) -> list[int]:
        """The special token which the template writes after an answer, not that for letters without a token."""
        unknown = self._specials.get(self._tokens.get("unk_token", ""))
        question = {"role": "user", "content": "a"}
        before = self._render([question], for_answer=True)
        after = self._render([question, {"role": "assistant", "content": "b"}])
        rest = after[_common_prefix(before, after) :]
        return [token_id for _, token_id in self._split_at_specials(rest) if token_id not in (None, unknown)][:1]


@contextmanager
def distrusted() -> Iterator[None]:
    """Within it a template of somebody else is met. Raises ProgramError (``unsafe_template``).

    A template is a program: one that counts to a billion would hold every run that meets it. Time is CPU time, so that
    a busy machine changes nothing.
    """

    def give_up(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"it needs more than {MAX_TEMPLATE_SECONDS} s of CPU time")

    before = signal.signal(signal.SIGVTALRM, give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, MAX_TEMPLATE_SECONDS)
    try:
        yield
    except (OverflowError, TimeoutError, MemoryError, RecursionError, SecurityError) as error:
        raise ProgramError("unsafe_template", f"the chat_template can not be trusted: {error}") from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def compile_template(template: str) -> jinja2.Template:
    """The environment in which transformers, vLLM and llama.cpp render chat templates."""

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        raise ProgramError("template_invalid", f"the chat template can not be read: {error}") from None


def _template_of(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The template of a folder: ``chat_template.jinja``, else the one in the tokenizer's configuration."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named templates: chat uses "default"
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template if isinstance(template, str) and template else None


def _default_template(tokenizer: Tokenizer, tokens: Mapping[str, str]) -> str:
    if tokenizer.token_to_id("<|im_end|>") is not None or "eos_token" not in tokens:
        return DEFAULT_TEMPLATE
    return DEFAULT_TEMPLATE.replace("<|im_end|>", tokens["eos_token"])


def _named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """``bos_token`` and friends as text; configurations write them as text or as objects with ``content``."""
    named = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(name)
        text = value.get("content") if isinstance(value, Mapping) else value
        if isinstance(text, str):
            named[name] = text
    return named


def _eos_ids(config: Mapping[str, Any]) -> list[int]:
    value = config.get("eos_token_id")
    if value is None:
        return []
    return [int(token_id) for token_id in (value if isinstance(value, list) else [value])]


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = json.loads(path.read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}


def _common_prefix(left: str, right: str) -> int:
    if right.startswith(left):
        return len(left)
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))
