"""4.5, 5.5, 8. 剩余资源查询: what the caller can still start and store."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from clavier.api.legacy.envelopes import RESOURCES
from clavier.api.legacy.fields import INT32_MAX, Body, Id, UserIs
from clavier.api.legacy.schema import operation
from clavier.api.legacy.times import time_of
from clavier.api.legacy.views import LegacyView
from clavier.api.legacy.words import say
from clavier.files.queries import has_default_limits, storage_left, storage_usage
from clavier.quotas.queries import left_for, remaining, window_of

TAG = "8 剩余资源查询"
KIB, GIB = 2**10, 2**30


class RemainBody(Body):
    userId = UserIs(help_text="用户ID；不填为本人 / the user; absent: yourself")


class QuotaBody(RemainBody):
    uId = Id(help_text="linux用户的uid（不使用）/ the Linux uid, which is not used: storage is the user's")
    uid = Id(help_text="同 uId / the same as uId")


class Remaining(serializers.Serializer[Any]):
    """What is left. 2147483647: nothing limits it."""

    remainCpu = serializers.IntegerField(help_text="剩余CPU（核）/ cores")
    remainMemory = serializers.FloatField(help_text="剩余内存（GiB）/ memory in GiB")
    remainMerory = serializers.FloatField(help_text="同 remainMemory / the same, in the spelling of the field table")
    remainVgpu = serializers.IntegerField(help_text="剩余VGPU / shares of GPUs")
    remainMig = serializers.IntegerField(help_text="剩余mig / MIG slices")
    remainJobNum = serializers.IntegerField(help_text="剩余运行作业数 / runs")
    remainGpu = serializers.IntegerField(help_text="剩余GPU / whole GPUs")
    isInitConfig = serializers.BooleanField(help_text="是否为初始配置（未设置过配额）/ no quota was ever set")
    startTime = serializers.CharField(allow_null=True, help_text="配额生效时间 / the quota is valid from")
    endTime = serializers.CharField(allow_null=True, help_text="配额失效时间 / the quota is valid until")


class StorageQuota(serializers.Serializer[Any]):
    """Storage, as texts with their units."""

    inodeQuota = serializers.CharField(help_text="文件数配额 / files and folders allowed")
    inodeUsed = serializers.CharField()
    inodeRemain = serializers.CharField()
    blockQuota = serializers.CharField(help_text="存储配额 / storage allowed")
    blockUsed = serializers.CharField()
    blockRemain = serializers.CharField()
    startTime = serializers.CharField()
    endTime = serializers.CharField()
    initConfig = serializers.BooleanField(help_text="是否为初始配置（未设置过配额）/ no quota was ever set")


class RemainView(LegacyView):
    envelope = RESOURCES

    @operation("getRemainResource", TAG, "8.1 查询用户AI剩余资源", RESOURCES, body=RemainBody, data=Remaining())
    def post(self, request: Request) -> Response:
        """The least of the caller's caps, its tenant's, and what the nodes have free."""
        self.read(RemainBody)
        left = left_for(self.actor)
        start, end = window_of(self.actor)
        memory_gib = round(counted(left["memory_mib"]) / KIB, 2) if left["memory_mib"] is not None else float(INT32_MAX)
        found = {
            "remainCpu": counted(left["cpu_milli"], 1000),
            "remainMemory": memory_gib,
            "remainMerory": memory_gib,
            "remainVgpu": counted(left["vgpus"]),
            "remainMig": counted(left["mig_devices"]),
            "remainJobNum": counted(left["running_runs"]),
            "remainGpu": counted(left["gpus"]),
            "isInitConfig": not remaining(self.actor) and start is None and end is None,
            "startTime": time_of(start),
            "endTime": time_of(end),
        }
        return self.answer(found, say("获取剩余资源成功", "These resources are left."))


class StorageQuotaView(LegacyView):
    envelope = RESOURCES

    @operation("getQuotaRemainResource", TAG, "8.2 查询用户存储配额", RESOURCES, body=QuotaBody, data=StorageQuota())
    def post(self, request: Request) -> Response:
        """What the caller's files and data sets take up, and what its own and its tenant's limit leave."""
        self.read(QuotaBody)
        usage, left = storage_usage(self.actor), storage_left(self.actor)
        start, end = window_of(self.actor)
        found = {
            "inodeQuota": str(usage["inodes_limit"]),
            "inodeUsed": str(usage["inodes_used"]),
            "inodeRemain": str(left["inodes"]),
            "blockQuota": in_gib(usage["bytes_limit"]),
            "blockUsed": in_gib(usage["bytes_used"]),
            "blockRemain": in_gib(left["bytes"]),
            "startTime": limit_of(start),
            "endTime": limit_of(end),
            "initConfig": has_default_limits(self.actor) and start is None and end is None,
        }
        return self.answer(found, say("查询成功", "This is the storage quota."))


def counted(amount: int | None, unit: int = 1) -> int:
    """Whole units; INT32_MAX where nothing limits it."""
    return INT32_MAX if amount is None else min(INT32_MAX, amount // unit)


def in_gib(size_bytes: int) -> str:
    """``12.34GiB``."""
    return f"{size_bytes / GIB:.2f}GiB"


def limit_of(moment: datetime | None) -> str:
    """A time, or the document's word for none."""
    return time_of(moment) or say("无限制", "unlimited")
