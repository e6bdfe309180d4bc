"""Paths that try to leave, and names that only look like it."""

from __future__ import annotations

import pytest

from clavier.core.errors import Invalid
from clavier.files.names import parse_file_name, parse_user_path


@pytest.mark.parametrize(
    "path",
    [
        "../../etc/passwd",
        "a/../../etc",
        "/etc/passwd",
        "/proc/self/environ",
        "..%2f..%2fetc%2fpasswd",
        "%252e%252e%252fetc%252fpasswd",
        "....//....//etc/passwd",
        "..\\..\\windows",
        "\uff0e\uff0e/\uff0e\uff0e/etc/passwd",
        "\u2024\u2024/etc/passwd",
        "~root/.ssh/authorized_keys",
        "~/.ssh",
    ],
)
def test_no_spelling_of_a_way_out_is_taken(path: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse_user_path(path, field="currentPath")
    assert refused.value.code == "path_outside_root"
    assert refused.value.field == "currentPath"
    assert "currentPath" in refused.value.message


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("a\0/../../etc/passwd", "bad_path"),
        ("a/" + "b" * 256, "too_long"),
        ("/".join(["d"] * 33), "bad_name"),
        ("/".join(["d" * 250] * 20), "too_long"),
        ("a\nb", "bad_name"),
        ("a\\b", "bad_name"),
        ("\ud800", "bad_name"),
    ],
)
def test_a_path_that_can_not_be_one_is_refused_in_words(path: str, code: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse_user_path(path, field="folder")
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("", ()),
        ("/", ()),
        ("a//./b/", ("a", "b")),
        ("100%25.txt", ("100%25.txt",)),
        ("$(reboot)/`x`; rm -rf", ("$(reboot)", "`x`; rm -rf")),
        ("数据/训练.jsonl", ("数据", "训练.jsonl")),
        ("e\u0301", ("\u00e9",)),
        ("~$report.docx", ("~$report.docx",)),
        ("a..b/...c", ("a..b", "...c")),
    ],
)
def test_odd_but_harmless_paths_are_taken_literally(path: str, parts: tuple[str, ...]) -> None:
    assert parse_user_path(path, field="folder") == parts


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("", "required"),
        ("   ", "required"),
        ("../x.bin", "bad_name"),
        ("a/b", "bad_name"),
        ("..", "bad_name"),
        ("\u2025", "bad_name"),
        ("a" * 256, "too_long"),
        ("字" * 86, "too_long"),
        ("a\0", "bad_name"),
    ],
)
def test_a_file_name_that_can_not_be_one_is_refused(name: str, code: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse_file_name(name, field="filename")
    assert refused.value.code == code
    assert "filename" in refused.value.message
