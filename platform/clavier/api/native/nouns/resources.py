"""Resource groups for everybody; nodes, GPUs and quotas for operators."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from clavier.api.common.idempotency import idempotent
from clavier.api.native.fields import AnyObject, Choice, Flag, Form, Strict, Text, WholeNumber
from clavier.api.native.schema import listed, operation
from clavier.api.native.views import NativeView
from clavier.quotas.capacity import groups_with_capacity
from clavier.quotas.limits import change_quota
from clavier.quotas.models import OWNER_SCOPES, Gpu, Node
from clavier.quotas.operators import add_gpu, all_gpus, all_nodes, all_quotas, change_node, quota_facts

TAG = "resources"
COUNTS = serializers.DictField(child=serializers.IntegerField())


class MigKind(serializers.Serializer[Any]):
    profile = serializers.CharField()
    total = serializers.IntegerField()
    free = serializers.IntegerField()


class Shares(serializers.Serializer[Any]):
    """Shares are counted at admission and not enforced by the hardware."""

    gpus = serializers.IntegerField(help_text="GPUs of which shares can be asked for.")
    largest_cores_percent = serializers.IntegerField(help_text="What the emptiest of them has left.")
    largest_memory_mib = serializers.IntegerField()


class Group(serializers.Serializer[Any]):
    """Where runs can be sent."""

    name = serializers.CharField()
    description = serializers.CharField()
    is_active = serializers.BooleanField(help_text="It takes new runs.")
    is_open = serializers.BooleanField(help_text="Everybody may use it; else you have a grant.")
    default_resources = serializers.DictField(
        child=serializers.IntegerField(), help_text="What one container gets that asks for nothing."
    )
    run_limits = serializers.DictField(
        child=serializers.IntegerField(), help_text="The most that one container may ask for."
    )
    num_nodes = serializers.IntegerField(help_text="Nodes that take runs now.")
    node_names = serializers.ListField(child=serializers.CharField())
    capacity = serializers.DictField(child=serializers.IntegerField(), help_text="cpu_milli, memory_mib, gpus.")
    free = serializers.DictField(
        child=serializers.IntegerField(), help_text="Of that; on several nodes, so one run may get less."
    )
    mig = MigKind(many=True)
    shares = Shares()


class NodeItem(serializers.ModelSerializer[Node]):
    """A machine, or a cluster, with its executor."""

    resource_group = serializers.CharField(source="resource_group.name")

    class Meta:
        model = Node
        fields = ("name", "resource_group", "executor", "engine_url", "engine_network", "assigns_gpus",
                  "is_schedulable", "last_seen_at", "created_at")  # fmt: skip


class NodeChange(Strict):
    is_schedulable = Flag(help_text="Off: runs go on, no new run is sent here.")


class GpuItem(serializers.ModelSerializer[Gpu]):
    """A GPU or MIG device and what is booked of it."""

    node = serializers.CharField(source="node.name")

    class Meta:
        model = Gpu
        fields = ("uuid", "node", "index", "name", "memory_mib", "mig_profile", "parent_uuid", "allows_sharing",
                  "is_healthy", "is_present", "cores_used", "memory_used_mib", "created_at")  # fmt: skip


class GpuFilter(Form):
    node = Text(required=False, help_text="Only of the node of that name.")


class NewGpu(Strict):
    node = Text(max_length=63)
    uuid = Text(max_length=80, help_text="GPU-... or MIG-..., as nvidia-smi -L prints it.")
    memory_mib = WholeNumber(min_value=1, max_value=2**31 - 1)
    index = WholeNumber(min_value=0, max_value=32767, default=0)
    name = Text(max_length=100, default="", allow_blank=True)
    mig_profile = Text(max_length=20, default="", allow_blank=True, help_text="Of a MIG device: such as 1g.10gb.")
    parent_uuid = Text(max_length=80, default="", allow_blank=True, help_text="Of a MIG device: its GPU.")
    allows_sharing = Flag(required=False, help_text="Shares of it may be booked.")


class OwnerQuota(serializers.Serializer[Any]):
    """What a tenant or user may use."""

    scope = serializers.ChoiceField(OWNER_SCOPES)
    name = serializers.CharField()
    caps = serializers.DictField(child=serializers.IntegerField(), help_text="What is not listed has no cap.")
    used = serializers.DictField(child=serializers.IntegerField(), help_text="Of what has a cap.")
    valid_from = serializers.DateTimeField(allow_null=True)
    valid_until = serializers.DateTimeField(allow_null=True)


class QuotaChange(Strict):
    caps = AnyObject(
        required=False,
        help_text="`running_runs`, `cpu_milli`, `memory_mib`, `gpus`, `vgpus`, `mig_devices`; null takes a cap away.",
    )
    valid_from = serializers.DateTimeField(required=False, allow_null=True, help_text="null: since ever.")
    valid_until = serializers.DateTimeField(required=False, allow_null=True, help_text="null: for ever.")
    bytes_limit = WholeNumber(min_value=0, max_value=2**60, required=False, help_text="Storage.")
    inodes_limit = WholeNumber(min_value=0, max_value=2**53, required=False, help_text="Files and folders.")


class QuotaFilter(Form):
    scope = Choice(OWNER_SCOPES, required=False)


class GroupsView(NativeView):
    @operation("list_resource_groups", TAG, "The resource groups that you may use, and what is free",
               answer=listed("ResourceGroups", Group(many=True)))  # fmt: skip
    def get(self, request: Request) -> Response:
        """By name."""
        self.query()
        return Response({"items": Group(groups_with_capacity(self.actor), many=True).data})


class NodesView(NativeView):
    @operation("list_nodes", TAG, "List the nodes (operators)", page_of=NodeItem)
    def get(self, request: Request) -> Response:
        """Newest first."""
        self.filters()
        return self.page(all_nodes(actor=self.actor), NodeItem)


class NodeView(NativeView):
    @operation("change_node", TAG, "Drain a node, or let it take runs again (operators)", body=NodeChange,
               answer=NodeItem, errors=(404,))  # fmt: skip
    def patch(self, request: Request, name: str) -> Response:
        """Runs on it go on."""
        return Response(NodeItem(change_node(actor=self.actor, name=name, **self.body(NodeChange))).data)


class GpusView(NativeView):
    @operation("list_gpus", TAG, "List GPUs and MIG devices (operators)", query=GpuFilter, page_of=GpuItem)
    def get(self, request: Request) -> Response:
        """Newest first."""
        return self.page(all_gpus(actor=self.actor, **self.filters(GpuFilter)), GpuItem)

    @operation("declare_gpu", TAG, "Declare a GPU or MIG device, or change it (operators)", body=NewGpu,
               answer=GpuItem, status=201, errors=(404, 409))  # fmt: skip
    @idempotent()
    def post(self, request: Request) -> Response:
        """What runs hold keeps its node, memory and profile."""
        return Response(GpuItem(add_gpu(actor=self.actor, **self.body(NewGpu))).data, status=201)


class QuotasView(NativeView):
    @operation("list_quotas", TAG, "List the quotas of tenants and users (operators)", query=QuotaFilter,
               answer=listed("Quotas", OwnerQuota(many=True)))  # fmt: skip
    def get(self, request: Request) -> Response:
        """By name; owners without any quota are not listed."""
        return Response({"items": OwnerQuota(all_quotas(actor=self.actor, **self.query(QuotaFilter)), many=True).data})


class OwnerQuotaView(NativeView):
    @operation("set_quota", TAG, "Set what is given of the quota of a tenant or user (operators)", body=QuotaChange,
               answer=OwnerQuota, errors=(404,))  # fmt: skip
    def patch(self, request: Request, scope: str, name: str) -> Response:
        """Limits below the present use stop new runs and files, never what runs or is stored."""
        given = self.body(QuotaChange)
        window = {time: given.pop(time) for time in ("valid_from", "valid_until") if time in given}
        owner = change_quota(actor=self.actor, scope=scope, name=name, window=window or None, **given)  # type: ignore[arg-type]
        return Response(OwnerQuota(quota_facts(scope, owner)).data)
