"""The sentences about waiting runs, in English and Chinese."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from django.utils.translation import get_language

UNITS = {"cpu_milli": 1000, "memory_mib": 1024}
NAMES = {
    "en": {
        "running_runs": "running runs",
        "cpu_milli": "CPU cores",
        "memory_mib": "GiB of memory",
        "gpus": "GPUs",
        "vgpus": "shares of GPUs",
        "mig_devices": "MIG devices",
    },
    "zh": {
        "running_runs": "个运行",
        "cpu_milli": "核 CPU",
        "memory_mib": "GiB 内存",
        "gpus": "块 GPU",
        "vgpus": "个 GPU 份额",
        "mig_devices": "个 MIG 设备",
    },
}
ONE = {"running_runs": "running run", "cpu_milli": "CPU core", "gpus": "GPU", "vgpus": "share of a GPU",
       "mig_devices": "MIG device"}  # fmt: skip

ENGLISH = {
    "left": "{left} of {cap} left {where}, {wanted} requested",
    "left_for_tenant": "for your tenant",
    "left_for_user": "for you",
    "left_in_group": "in group {group}",
    "left_in_share": "of it",
    "share": "Your tenant may not use more than its share of group {group}:",
    "spread": "No node of group {group} has {wanted} free at once; the nearest, {node}, has {parts}.",
    "no_room_for_gang": "Group {group} has no room for {count} containers at once; the largest needs {wanted}.",
    "no_nodes": "No node of group {group} takes runs now.",
    "no_named_nodes": "It may only run on {nodes}, which takes no runs now.",
    "not_before": "It starts no earlier than {time}.",
    "disk_low": "The platform's disk is nearly full, so nothing new starts.",
    "disk_freed": "It starts when an operator has made room.",
    "quota_of_tenant": "The quota of your tenant",
    "quota_of_user": "Your quota",
    "window_opens": "{whose} is valid from {time}.",
    "window_closed": "{whose} ended at {time}.",
    "next_pass": "It is about to start.",
    "by_itself": "It starts by itself.",
    "operator_opens": "It starts when an operator opens a node to new runs.",
    "new_quota": "Ask an operator for a new quota.",
    "more_quota": "It is more than the quota allows at all: ask an operator for more, or ask for less.",
    "when_freed": "It starts when {amount} more are free.",
    "no_share": "No GPU of group {group} has {percent} % and {memory} GiB free for a share.",
    "when_gpus": "It starts when runs that hold such GPUs end.",
    "when_several": "It starts when several runs have ended.",
    "when_ends": "It starts when {runs} ends.",
    "run_named": "run {name}",
    "run_of_other": "a run of another tenant",
}
CHINESE = {
    "left": "{where}剩余 {left}/{cap},申请 {wanted}",
    "left_for_tenant": "您的租户",
    "left_for_user": "您",
    "left_in_group": "资源组 {group} ",
    "left_in_share": "该份额",
    "share": "您的租户不能超出其在资源组 {group} 中的份额:",
    "spread": "资源组 {group} 中没有一个节点同时空闲 {wanted};最接近的节点 {node} 空闲 {parts}。",
    "no_room_for_gang": "资源组 {group} 的节点放不下 {count} 个容器;其中最大的需要 {wanted}。",
    "no_nodes": "资源组 {group} 目前没有节点接收运行。",
    "no_named_nodes": "只能在 {nodes} 上运行,而它目前不接收运行。",
    "not_before": "最早于 {time} 启动。",
    "disk_low": "平台磁盘空间不足,暂不启动新的运行。",
    "disk_freed": "管理员清理磁盘后自动启动。",
    "quota_of_tenant": "您租户的配额",
    "quota_of_user": "您的配额",
    "window_opens": "{whose}自 {time} 起有效。",
    "window_closed": "{whose}已于 {time} 到期。",
    "next_pass": "即将启动。",
    "by_itself": "届时自动启动。",
    "operator_opens": "管理员开放节点后自动启动。",
    "new_quota": "请向管理员申请新的配额。",
    "more_quota": "已超出配额上限:请向管理员申请更多配额,或减少申请量。",
    "when_freed": "再有 {amount} 空闲时启动。",
    "no_share": "资源组 {group} 中没有一块 GPU 同时剩余 {percent} % 和 {memory} GiB 可供共享。",
    "when_gpus": "占用此类 GPU 的运行结束后启动。",
    "when_several": "多个运行结束后启动。",
    "when_ends": "{runs}结束后启动。",
    "run_named": "运行 {name} ",
    "run_of_other": "其他租户的运行",
}


def say(word: str, **facts: object) -> str:
    """A sentence or part of one, in the language of the request."""
    return (CHINESE if is_chinese() else ENGLISH)[word].format(**facts)


def number_of(resource: str, amount: int, *, bare: bool = False) -> str:
    """An amount in the unit that people read, with its name: 2 GPUs, 1.5 CPU cores."""
    number = f"{amount / UNITS.get(resource, 1):.4g}"
    if bare:
        return number
    name = NAMES["zh" if is_chinese() else "en"][resource]
    if not is_chinese() and number == "1":
        name = ONE.get(resource, name)
    return f"{number} {name}"


def left_of(resource: str, left: int, cap: int, wanted: int, where: str) -> str:
    """ "2 of 8 GPUs left in group a100, 4 requested"."""
    return say(
        "left",
        left=number_of(resource, max(0, left), bare=True),
        cap=number_of(resource, cap),
        where=where,
        wanted=number_of(resource, wanted, bare=True),
    )


def listed(parts: Sequence[str], last: Literal["and", "or"] = "and") -> str:
    """One, two and three."""
    if is_chinese():
        return {"and": "、", "or": "或"}[last].join(part.strip() for part in parts)
    return f" {last} ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def is_chinese() -> bool:
    """The language of the request."""
    return (get_language() or "en").startswith("zh")
