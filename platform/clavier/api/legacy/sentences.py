"""Chinese for what services say: they speak English, and a catalogue of sentences beside this file has both."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

CATALOGUE = Path(__file__).with_name("sentences.zh.txt")
_PARAMETER = re.compile(r"\{([a-z]+)\}")
#: Parameters that are words of ours, and the words.
_OURS = frozenset(("advice", "noun", "state", "what", "why"))
VALUES = {
    "API key": "API 密钥",
    "CPU cores": "CPU 核",
    "Delete files, data sets or models, or ask the operator.": "请删除文件、数据集或模型，或联系管理员。",
    "GPU memory": "显存",
    "GPUs": "GPU",
    "GiB of memory": "GiB 内存",
    "MIG devices": "MIG 设备",
    "Use a smaller model or a larger machine.": "请使用更小的模型或更大的机器。",
    "Wait until its import has ended.": "请等待导入结束。",
    "a second line": "第二行",
    "an own server": "自定义服务程序",
    "data set": "数据集",
    "data set version": "数据集版本",
    "evaluation": "评估任务",
    "failed": "失败",
    "image": "镜像",
    "importing": "导入中",
    "it is not known": "它未知",
    "memory": "内存",
    "model": "模型",
    "model version": "模型版本",
    "none": "无",
    "not started": "未启动",
    "object store": "对象存储",
    "run": "运行",
    "service": "服务",
    "shares of GPUs": "GPU 份额",
    "task": "任务",
    "this run has none: give its folder or version": "该任务没有：请填写其目录或版本",
    "volumes at paths of their own": "挂载到自定义路径的卷",
}


def in_chinese(message: str) -> str | None:
    """The Chinese sentence with the parameters of the English one; None where the catalogue has none."""
    for pattern, chinese in sentences():
        found = pattern.fullmatch(message)
        if found is not None:
            return filled(chinese, found.groupdict())
    return None


def filled(chinese: str, values: Mapping[str, str]) -> str:
    """A sentence with its parameters; those that are words of ours in Chinese."""
    spoken = {name: VALUES.get(value, value) if name in _OURS else value for name, value in values.items()}
    return _PARAMETER.sub(lambda place: spoken.get(place[1], place[0]), chinese)


@cache
def sentences() -> list[tuple[re.Pattern[str], str]]:
    """What an English sentence looks like, and its Chinese; the one with the most words of its own comes first."""
    entries = [
        entry.split("\n")
        for entry in CATALOGUE.read_text(encoding="utf-8").strip().split("\n\n")
        if not entry.startswith("#")
    ]
    entries.sort(key=lambda entry: -len(_PARAMETER.sub("", entry[0])))
    return [(pattern_of(english), chinese) for english, chinese in entries]


def pattern_of(english: str) -> re.Pattern[str]:
    """Matches the sentence with any parameters; a noun may be several words."""
    parts = _PARAMETER.split(english)
    kinds = {"noun": "[A-Za-z ]+"}
    words = (
        f"(?P<{part}>{kinds.get(part, '.*?')})" if number % 2 else re.escape(part) for number, part in enumerate(parts)
    )
    return re.compile("".join(words), re.DOTALL)
