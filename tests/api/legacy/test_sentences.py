"""What services refuse is said in Chinese: every sentence that the 24 routes can meet, and every machine word."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.utils import translation

from clavier.api.legacy.sentences import CATALOGUE, in_chinese, sentences
from clavier.api.legacy.shapes.ends import WORDS, end_of, said_of
from clavier.api.legacy.words import CHINESE, translated
from clavier.core import errors
from clavier.quotas.shortage import Shortage
from clavier.runs.models import Run
from clavier.runs.states import EndReason, RunState

ROOT = Path(__file__).resolve().parents[3]
PLATFORM = ROOT / "platform" / "clavier"
#: Modules whose functions the routes call.
REACHED = [
    *(PLATFORM / "accounts" / name for name in ("access.py", "auth.py")),
    *(PLATFORM / "api" / "common").glob("*.py"),
    *(PLATFORM / "core" / name for name in ("names.py", "paths.py", "references.py", "secrets.py")),
    *(PLATFORM / "files" / name for name in ("access.py", "adoption.py", "folders.py", "names.py", "queries.py",
                                             "services.py", "storage.py")),
    *(PLATFORM / "images" / name for name in ("access.py", "references.py", "services.py")),
    *(PLATFORM / "quotas" / name for name in ("requests.py",)),
    *(PLATFORM / "runs" / name for name in ("commands.py", "options.py", "own_code.py", "services.py")),
    *(ROOT / "models_app" / name for name in ("declarations.py", "object_stores.py", "queries.py", "registering.py",
                                              "services.py", "staging.py")),
    *(ROOT / "finetune_app" / name for name in ("checks.py", "custom.py", "forecast.py", "from_config.py", "profile.py",
                                                "queries.py", "registration.py", "services.py", "tokenizers.py")),
    *(ROOT / "evaluation_app" / name for name in ("custom.py", "services.py")),
    *(ROOT / "inference_app" / name for name in ("services.py", "specs.py", "versions.py")),
    ROOT / "datasets_app" / "queries.py",
]  # fmt: skip
REFUSALS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and kind.__name__ != "FieldProblem"}
#: Not sentences of ours: words that are passed on, an import's end, and a place where a part of a sentence follows.
PASSED_ON = re.compile(r"P|.*: P\.?|The manifest does not .*|.* take this runP\..*|P P is no textP\.")


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, ast.AST]]:
    """Calls that make a refusal, each with the function around it."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Call):
                    yield node, function


def texts(node: ast.expr, function: ast.AST) -> Iterator[str]:
    """The texts that an expression can be, each parameter written as P."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(part.value if isinstance(part, ast.Constant) else "P" for part in node.values)
    elif isinstance(node, ast.Name):
        for assigned in ast.walk(function):
            if isinstance(assigned, ast.Assign) and ast.unparse(assigned.targets[0]) == node.id:
                yield from texts(assigned.value, function)


def message_of(call: ast.Call) -> ast.expr | None:
    """The argument that is the sentence."""
    name = ast.unparse(call.func).split(".")[-1]
    place = 0 if name in REFUSALS else 2 if name in ("FieldProblem", "add") else None
    return call.args[place] if place is not None and len(call.args) > place else None


def spoken_in(module: Path) -> set[str]:
    """The sentences of a module."""
    found = ((message_of(call), function) for call, function in calls(ast.parse(module.read_text())))
    return {text for node, function in found if node is not None for text in texts(node, function)}


@pytest.mark.parametrize("module", REACHED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_refusal_of_the_services_has_a_chinese_sentence(module: Path) -> None:
    lacking = [text for text in spoken_in(module) if not PASSED_ON.fullmatch(text) and in_chinese(text) is None]
    assert lacking == [], f"write them into {CATALOGUE.name}"


def test_the_walk_finds_what_there_is() -> None:
    assert sum(len(spoken_in(module)) for module in REACHED) > 150


def test_every_machine_word_means_something_in_chinese() -> None:
    words = {kind.default_code for kind in vars(errors).values() if hasattr(kind, "default_code")}
    for module in REACHED:
        words |= set(re.findall(r"\bcode=\"([a-z_]+)\"", module.read_text()))
    assert sorted(words - set(CHINESE)) == []


def test_entries_are_pairs_with_the_same_parameters() -> None:
    for pattern, chinese in sentences():
        assert set(re.findall(r"\{([a-z]+)\}", chinese)) <= set(pattern.groupindex), chinese
        assert not chinese.isascii(), chinese


@pytest.mark.parametrize(
    ("code", "english", "chinese"),
    [
        ("not_found", "There is no model version 'x'.", "不存在模型版本 'x'。"),
        ("unknown_placeholder", "command names ${model}, but it is not known. There are ${output_dir}.",
         "command 使用了 ${model}，但它未知。可用的占位符：${output_dir}。"),
        ("not_ready", "The image dzq/45:1 is importing. Wait until its import has ended.",
         "镜像 dzq/45:1 当前状态为导入中。请等待导入结束。"),
        ("", "The program ended with exit code 1: no. It reached the process limit of a run: start fewer workers.",
         "程序以退出码 1 结束：no. 已达到单个运行的进程数上限，请减少工作进程。"),
        ("too_many_files", "Nobody has said this.", "文件过多：Nobody has said this."),
        ("exit_code", "6 tokens make no sequence of 512; lower sequence_length",
         "6 个 token 不足以构成长度为 512 的序列，请减小 sequence_length"),
        ("command_not_found", "The command could not be executed (exit code 1): command not run: x: Permission denied",
         "命令无法执行（退出码 1）：x 没有执行权限"),
        ("bad_layout", "inputDir private/x must hold the folders train, validate, test and nothing else: test missing.",
         "inputDir private/x 须且只能包含目录 train, validate, test：缺少 test。"),
        ("unschedulable", "The resource group 'x' has no MIG devices '7g'; it has no MIG devices.",
         "资源组 'x' 没有任何 MIG 设备，因此没有 '7g'。"),
        ("out_of_range", "sequence_length: 2000000 is outside 320 to 1000000 tokens.",
         "sequence_length：2000000 不在 320 到 1000000 个 token 之间。"),
        ("bad_value", "a: b\nc is a file; a folder is needed.", "a: b\nc 是文件，须为目录。"),
    ],
)  # fmt: skip
def test_sentences_keep_their_parameters(code: str, english: str, chinese: str) -> None:
    with translation.override("zh-hans"):
        assert translated(code, english) == chinese
    with translation.override("en"):
        assert translated(code, english) == english


def test_what_no_node_has_is_said_in_the_words_of_the_language() -> None:
    shortage = Shortage("node", "gpus", cap=4, used=0, wanted=8, node="a1")
    whole = f"No node of the resource group 'x' can take this run; the nearest node: {shortage}."
    chinese = in_chinese(f"{whole} Ask for less, or for another group.")
    assert chinese is not None
    assert "最接近的节点 a1 可提供 4/4（GPU），申请了 8" in chinese
    share = Shortage("node", "vgpus", cap=0, used=0, wanted=1, node="a1", detail=" with 50 % and 2048 MiB")
    chinese = in_chinese(f"{whole.replace(str(shortage), str(share))} Ask for less, or for another group.")
    assert chinese is not None
    assert "0/0 个 50 % 算力与 2048 MiB 显存的 GPU 份额" in chinese


def test_how_a_run_ended_is_said_with_a_chinese_label_where_it_has_no_sentence() -> None:
    run = Run(state=RunState.FAILED, end_reason=EndReason.EXIT_NONZERO, message="Nobody has said this.")
    with translation.override("zh-hans"):
        assert end_of(run) == {"message": "程序失败：Nobody has said this.", "error": "exit_code"}
        assert said_of(Run(state=RunState.RUNNING, message="Nobody.")) == "说明：Nobody."
        assert said_of(Run(state=RunState.RUNNING)) == said_of(None) == ""
    with translation.override("en"):
        assert said_of(run) == run.message
    assert {*WORDS.values(), "command_not_executable"} - {""} <= set(CHINESE)
