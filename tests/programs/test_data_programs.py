"""Fetching, counting tokens, and looking for shared rows: the programs on real files and a real web server."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, normalizers

from runner.programs.data import fetch, overlap, tokens
from runner.programs.lib import fast_tokens
from runner.programs.lib.data import read_rows
from runner.programs.lib.events import ProgramError, Stopped
from runner.programs.lib.fast_tokens import FastTokens, NotAlike
from runner.programs.lib.golden import GOLDEN_CONVERSATIONS, GOLDEN_TOOL_CONVERSATION
from runner.programs.lib.render import Renderer
from runner.programs.lib.token_counts import TokenCounter
from runner.programs.lib.tools import without
from tests.programs.recipes import events_of, make_context, write_rows
from tests.programs.tiny_models import CHATML_WITH_TOOLS, write_tiny_tokenizer

ODD_TEXTS = ("e\u0301te", "<|im_end|>hi", "你好🙂👨‍👩‍👧", "  a\n\n b\t", "", "\u202e12345 don't", "한국어 עברית")
Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def web_server(answer: Answer) -> Iterator[str]:
    """A server on loopback; its address without a path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *args: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def fetched(tmp_path: Path, url: str, allowed: list[str], max_bytes: int = 10**6) -> bytes:
    """What the program leaves."""
    given = {
        "source": "url",
        "location": url,
        "file_name": "rows.jsonl",
        "allowed": allowed,
        "max_bytes": max_bytes,
    }
    fetch.main(make_context(tmp_path / "run", given))
    return (tmp_path / "run" / "output" / "rows.jsonl").read_bytes()


def test_a_file_that_breaks_off_is_taken_up_where_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "FIRST_PAUSE_S", 0.0)
    content, asked = bytes(range(256)) * 1000, []

    def answer(request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range", "")
        start = int(wanted.removeprefix("bytes=").removesuffix("-") or 0)
        asked.append((start, request.headers.get("If-Range")))
        if len(asked) == 2:
            request.send_error(503)
            return
        request.send_response(206 if wanted else 200)
        request.send_header("ETag", '"one"')
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        request.wfile.write(content[start:] if start else content[:100_000])

    with web_server(answer) as place:
        assert fetched(tmp_path, f"{place}/rows.jsonl", [place]) == content
    assert asked == [(0, None), (100_000, '"one"'), (100_000, '"one"')]
    assert events_of(tmp_path / "run", "progress")
    assert len(events_of(tmp_path / "run", "warning")) == 2


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://127.0.0.1:1/x.jsonl", "address_not_allowed"),
        ("https://127.0.0.1/x.jsonl", "address_not_allowed"),
        ("https://[::ffff:169.254.169.254]/x.jsonl", "address_not_allowed"),
        ("https://localhost/x.jsonl", "address_not_allowed"),
        ("ftp://host.example/x.jsonl", "address_not_allowed"),
    ],
)
def test_private_addresses_are_not_asked(url: str, code: str, tmp_path: Path) -> None:
    with pytest.raises(ProgramError) as refusal:
        fetched(tmp_path, url, [])
    assert refusal.value.code == code
    assert not list((tmp_path / "run").glob("output/*"))


@pytest.mark.parametrize(
    ("path", "code", "part"),
    [
        ("/away", "address_not_allowed", "127.0.0.2"),
        ("/none", "not_found", "404"),
        ("/large", "file_too_large", "1,000"),
        ("/endless", "file_too_large", "1,000"),
        ("/packed", "bad_answer", "compressed"),
    ],
)
def test_what_a_server_may_not_do_is_refused_in_words(path: str, code: str, part: str, tmp_path: Path) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        statuses = {"/away": 302, "/none": 404}
        request.send_response(statuses.get(request.path, 200))
        headers = {
            "/away": ("Location", "https://127.0.0.2/secret"),
            "/large": ("Content-Length", "1000000"),
            "/packed": ("Content-Encoding", "gzip"),
        }
        request.send_header(*headers.get(request.path, ("X-Nothing", "1")))
        request.end_headers()
        if request.path == "/endless":
            request.wfile.write(b"x" * 5000)

    with web_server(answer) as place, pytest.raises(ProgramError) as refusal:
        fetched(tmp_path, place + path, [place], max_bytes=1000)
    assert refusal.value.code == code
    assert part in refusal.value.message


def test_a_stop_leaves_no_file(tmp_path: Path) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(b"x" * 1000)

    with web_server(answer) as place:
        given = {"source": "url", "location": place, "file_name": "a.txt", "allowed": [place], "max_bytes": 10**6}
        context = make_context(tmp_path / "run", given)
        context.should_stop = True
        with pytest.raises(Stopped):
            fetch.main(context)
    assert not list((tmp_path / "run").glob("output/*"))


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small byte-level BPE in the manner of Qwen2."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tiny_tokenizer(folder)
    return folder


needs_fastokens = pytest.mark.skipif(fast_tokens.fastokens is None, reason="fastokens is not installed")


def counters(folder: Path) -> tuple[TokenCounter, TokenCounter]:
    """The fast one and the slow one."""
    renderer, tokenizer = Renderer.from_folder(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    return TokenCounter(renderer, tokenizer), TokenCounter(renderer, tokenizer, is_fast=False)


@needs_fastokens
def test_the_fast_twin_counts_as_the_renderer_does(tokenizer_folder: Path) -> None:
    fast, slow = counters(tokenizer_folder)
    assert fast.is_fast, fast.why_slow
    pairs = [
        [{"role": "user", "content": odd}, {"role": "assistant", "content": f"{odd} yes"}] * 2 for odd in ODD_TEXTS
    ]
    for conversation in [*GOLDEN_CONVERSATIONS, *pairs]:
        assert fast.conversation(conversation) == slow.conversation(conversation), conversation
    for text in ODD_TEXTS:
        assert fast.samples({"text": text}, "") == slow.samples({"text": text}, "")


@needs_fastokens
def test_conversations_with_tools_are_counted_by_the_renderer(tmp_path: Path) -> None:
    write_tiny_tokenizer(tmp_path, CHATML_WITH_TOOLS)
    fast, slow = counters(tmp_path)
    counted = fast.conversation(GOLDEN_TOOL_CONVERSATION)
    assert counted == slow.conversation(GOLDEN_TOOL_CONVERSATION)
    assert counted.num_tokens > fast.conversation(without(GOLDEN_TOOL_CONVERSATION, "tools")).num_tokens


@needs_fastokens
def test_the_fast_twin_has_the_ids_of_texts_of_any_characters(tokenizer_folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    fast, chance = FastTokens(tokenizer), random.Random(7)
    usual = [*"ab Z'sſKtTvVD019 \n\r\t\u00a0\u3000\u200b\x85\u2028中文。，!?._\u0301\u0323é한🙂\u200d🇨🇳", *ODD_TEXTS]
    rare = [character for code in range(0x30000) if (character := chr(code)).isprintable()]
    for _ in range(3_000):
        parts = [chance.choice(rare if chance.random() < 0.3 else usual) for _ in range(chance.randrange(1, 40))]
        text = "".join(parts)
        assert fast.encode(text) == tokenizer.encode(text, add_special_tokens=False).ids, ascii(text)
        assert fast.count(text) == len(fast.encode(text))


def test_without_the_library_the_tokenizer_itself_counts(
    tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_tokens, "fastokens", None)
    counter, slow = counters(tokenizer_folder)
    assert "fastokens is not installed" in counter.why_slow
    assert counter.samples({"text": "Hello"}, "") == slow.samples({"text": "Hello"}, "")


@needs_fastokens
def test_a_tokenizer_of_another_kind_has_no_fast_twin(tokenizer_folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(NotAlike, match="changes texts"):
        FastTokens(tokenizer)


ROWS = [{"question": f"What is {number} times two?", "answer": "It is " + "many " * number} for number in range(40)]


def counted(tmp_path: Path, folder: Path, rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """The program's report."""
    tmp_path.mkdir(exist_ok=True)
    given = {"rows": write_rows(tmp_path / "rows.jsonl", rows), "model": str(folder), "num_rows": len(rows), **more}
    tokens.main(make_context(tmp_path / "run", given))
    found: dict[str, Any] = json.loads((tmp_path / "run" / "output" / "result.json").read_text())
    return found


def test_tokens_are_counted_with_what_each_length_would_cost(tmp_path: Path, tokenizer_folder: Path) -> None:
    report = counted(tmp_path, tokenizer_folder, ROWS, max_lengths=[60, 10_000])
    _, slow = counters(tokenizer_folder)
    samples = [slow.samples(row, "")[0] for _, row in read_rows(tmp_path / "rows.jsonl")]
    assert (report["samples"], report["path"]) == (40, "fast" if fast_tokens.fastokens else "slow")
    assert report["tokens"] == sum(sample.num_tokens for sample in samples)
    assert report["longest"] == max(sample.num_tokens for sample in samples)
    assert sum(item["samples"] for item in report["histogram"]) == 40
    learned = sum(end - start for sample in samples for start, end in sample.spans)
    lost = sum(max(0, end - max(start, 60)) for sample in samples for start, end in sample.spans)
    dropped = sum(end - start for sample in samples if sample.num_tokens > 60 for start, end in sample.spans)
    at = {item["max_length"]: item for item in report["at"]}
    assert report["learned"] == learned
    assert at[60]["lost_truncate"] == pytest.approx(lost / learned, abs=1e-5)
    assert at[60]["lost_drop"] == pytest.approx(dropped / learned, abs=1e-5)
    assert (at[10_000]["longer"], at[10_000]["lost_truncate"]) == (0, 0)


@needs_fastokens
def test_a_difference_in_a_checked_row_makes_the_slow_way_count(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = counted(tmp_path / "a", tokenizer_folder, ROWS)
    encode = FastTokens.encode
    monkeypatch.setattr(FastTokens, "encode", lambda self, text: [*encode(self, text), 0])
    report = counted(tmp_path / "b", tokenizer_folder, ROWS)
    assert (report["path"], report["tokens"]) == ("slow", right["tokens"])
    assert "row 1" in report["why_slow"]


def test_leaked_and_almost_equal_rows_are_found_with_their_numbers(tmp_path: Path) -> None:
    said = "The opening hours of the shop in the old town are from eight to six on working days"
    train = [{"question": f"question number {n} about {n * n}", "answer": "a"} for n in range(30)]
    train += [{"question": text, "answer": "a"} for text in (said, f"{said}.", f"{said} only")]
    leak = [{"role": "user", "content": "QUESTION number 3, about 9!"}, {"role": "assistant", "content": "x"}]
    near = {"question": said.replace("shop", "shops"), "answer": "d"}
    test = [{"messages": leak}, near, {"question": "other", "answer": "e"}]
    given = {
        "rows": write_rows(tmp_path / "test.jsonl", test),
        "against": [{"id": "1", "label": "train", "rows": write_rows(tmp_path / "train.jsonl", train)}],
        "threshold": 0.8,
    }
    overlap.main(make_context(tmp_path / "run", given))
    report = json.loads((tmp_path / "run" / "output" / "result.json").read_text())
    leaked = report["sets"][0]
    assert (report["rows"], leaked["exact"], leaked["near"], leaked["rows"]) == (3, 1, 1, 33)
    first, second = leaked["samples"]
    assert (first["kind"], first["line"], first["other_line"]) == ("exact", 1, 4)
    assert first["other_text"] == "question number 3 about 9"
    assert (second["kind"], second["line"], second["other_line"]) == ("near", 2, 31)
    assert 0.8 <= second["similarity"] < 1
    given |= {"rows": str(tmp_path / "train.jsonl"), "against": []}
    overlap.main(make_context(tmp_path / "run2", given))
    within = json.loads((tmp_path / "run2" / "output" / "result.json").read_text())["within"]
    assert within["near"] == 1, "equal ones are the gate's"
    assert (within["samples"][0]["line"], within["samples"][0]["other_line"]) == (33, 31)
