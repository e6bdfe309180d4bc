"""Inference services and their replicas."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from drf_spectacular.utils import OpenApiExample, extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from clavier.api.common.idempotency import idempotent
from clavier.api.native.fields import (
    OPTIONS_HELP,
    AnyObject,
    Choice,
    Flag,
    Form,
    Identifier,
    Resources,
    Strict,
    Text,
    WholeNumber,
)
from clavier.api.native.nouns.common import Owned, Reference
from clavier.api.native.run_parts import STATES, Log, LogQuery, RunView
from clavier.api.native.schema import listed, operation
from clavier.api.native.views import NativeView
from clavier.core.errors import NotFound
from clavier.runs.models import Run
from inference_app.models import DESIRED_STATES, REQUEST_METHODS, SCALE_ON, InferenceService
from inference_app.queries import SERVICE_STATES, replica_at, replica_facts, replicas_of, state_of, visible_services
from inference_app.services import (
    access_service,
    add_service_version,
    create_service,
    delete_service,
    set_traffic,
    start_service,
    stop_service,
)

TAG = "services"


class ServiceVersion(serializers.Serializer[Any]):
    """One model version behind a service."""

    number = serializers.IntegerField()
    model_version = Reference(allow_null=True, help_text="null: an own server without a registered model.")
    image = Reference(source="image_version", allow_null=True, help_text="Of an own server.")
    own_code = serializers.DictField(help_text="Of an own server: its command and environment.")
    image_ports = serializers.ListField(child=serializers.IntegerField())
    volumes = serializers.ListField(child=serializers.DictField(), help_text="`[{src, dst}]`.")
    volume_path = serializers.CharField()
    request_method = serializers.ChoiceField(REQUEST_METHODS)
    hyperparameters = serializers.DictField()
    options = serializers.DictField()
    traffic_percent = serializers.IntegerField(help_text="All versions together have 100.")
    num_replicas = serializers.IntegerField()
    min_replicas = serializers.IntegerField()
    max_replicas = serializers.IntegerField()
    scale_on = serializers.ChoiceField(SCALE_ON, help_text="What the number of replicas is to follow.")
    scale_threshold = serializers.IntegerField()
    context_tokens = serializers.IntegerField(help_text="Prompt and answer together.")
    parallel = serializers.IntegerField(help_text="Requests that a replica answers at once.")
    resources = serializers.DictField(help_text="Of each replica: `{cpu_milli, memory_mib, gpus}`.")
    created_at = serializers.DateTimeField()


class Service(Owned):
    """A name under which programs ask: the `model` of a request to /openai/v1/chat/completions."""

    name = serializers.CharField()
    description = serializers.CharField()
    desired_state = serializers.ChoiceField(DESIRED_STATES, help_text="What was asked for.")
    state = serializers.SerializerMethodField(help_text="What there is: READY answers, DEGRADED answers in part.")
    versions = ServiceVersion(many=True)

    @extend_schema_field(serializers.ChoiceField(SERVICE_STATES))
    def get_state(self, service: InferenceService) -> str:
        """From what is wanted and what lives."""
        return state_of(service)


class Parity(serializers.Serializer[Any]):
    conversations = serializers.IntegerField()
    tokens = serializers.IntegerField()


class Replica(serializers.Serializer[Any]):
    """One server of a service."""

    service_version = serializers.IntegerField(help_text="Number of the service's version.")
    index = serializers.IntegerField(help_text="From 0 on.")
    run_id = serializers.UUIDField(allow_null=True)
    node = serializers.CharField(allow_null=True, help_text="The machine that it runs on, or ran on last.")
    state = serializers.ChoiceField(STATES, allow_null=True)
    why = serializers.CharField(help_text="While PENDING: what it waits for.")
    message = serializers.CharField(help_text="How it ended.")
    restarts = serializers.IntegerField(help_text="Ends in a row that nobody asked for.")
    engine = serializers.CharField(allow_null=True, help_text="What serves: llama.cpp or vLLM.")
    parity = Parity(allow_null=True, help_text="The server's token ids equal the trainer's on all of these.")
    started_at = serializers.DateTimeField(allow_null=True)
    progress = serializers.DictField(help_text="While PREPARING: how far it is.")


class ServiceFilters(Form):
    search = Text(default="", allow_blank=True, max_length=63, help_text="Text in the name.")


class ReplicaLogQuery(LogQuery):
    replica = WholeNumber(min_value=0, max_value=10_000, default=0, help_text="Index of the replica.")
    version = WholeNumber(
        min_value=1,
        max_value=2**31 - 1,
        required=False,
        help_text="Number of the version; absent: the newest.",
    )


class NewServiceVersion(Strict):
    """One version of a service: a registered model, or a server of the user's own."""

    model_version = Identifier(
        required=False, allow_null=True, help_text="Id of a ready model version; an adapter is served on its base."
    )
    image = Identifier(required=False, allow_null=True, help_text="Id of an image version: an own server.")
    command = Text(required=False, allow_blank=True, help_text="Of an own server; absent: what its image starts.")
    code_folder = Text(required=False, allow_blank=True, max_length=5000, help_text="Copied; the command starts in it.")
    environment = AnyObject(required=False, help_text="`{NAME: value}`.")
    hyperparameters = AnyObject(required=False, help_text="Reach an own server as flags and variables.")
    image_ports = serializers.ListField(
        child=WholeNumber(min_value=1, max_value=65_535), max_length=16, required=False,
        help_text="Where an own server listens, the first first.",
    )  # fmt: skip
    volumes = serializers.ListField(
        child=serializers.DictField(), max_length=16, required=False, help_text="`[{src: your folder, dst: /path}]`."
    )
    volume_path = Text(required=False, allow_blank=True, max_length=5000, help_text="A folder of yours, read in place.")
    request_method = Choice(REQUEST_METHODS, required=False, help_text="grpc can be saved, not served yet.")
    num_replicas = WholeNumber(min_value=1, max_value=64, required=False, help_text="Default min_replicas.")
    min_replicas = WholeNumber(min_value=0, max_value=64, required=False, help_text="Default 1.")
    max_replicas = WholeNumber(min_value=1, max_value=64, required=False, help_text="Default num_replicas.")
    scale_on = Choice(SCALE_ON, required=False)
    scale_threshold = WholeNumber(min_value=1, max_value=1_000_000, required=False, help_text="Default 100.")
    context_tokens = WholeNumber(
        min_value=16, max_value=1_048_576, required=False, help_text="Absent: 2048, or what the model was built for."
    )
    parallel = WholeNumber(min_value=1, max_value=256, required=False, help_text="Default 4.")
    resources = Resources(required=False)
    options = AnyObject(required=False, help_text=OPTIONS_HELP)


class SharedVersion(NewServiceVersion):
    """A version with its share of the traffic."""

    traffic_percent = WholeNumber(min_value=0, max_value=100, required=False, help_text="Default 100.")


class NewService(NewServiceVersion):
    name = Text(max_length=63, help_text="Lower-case letters, digits and '-'. Unique in the tenant.")
    description = Text(required=False, allow_blank=True, max_length=20_000)
    versions = serializers.ListField(
        child=SharedVersion(), min_length=1, max_length=20, required=False,
        help_text="Several versions at once, in place of the fields of one; their traffic_percent sum to 100.",
    )  # fmt: skip
    start = Flag(default=True, help_text="false: only save it as a draft.")


class Share(Strict):
    version = WholeNumber(min_value=1, max_value=2**31 - 1, help_text="Number of the version.")
    percent = WholeNumber(min_value=0, max_value=100)


class Traffic(Strict):
    shares = serializers.ListField(child=Share(), min_length=1, max_length=100, help_text="They sum to 100.")


class ServicesView(NativeView):
    @operation("list_services", TAG, "List services", query=ServiceFilters, page_of=Service)
    def get(self, request: Request) -> Response:
        """Newest first."""
        return self.page(visible_services(self.actor, **self.filters(ServiceFilters)), Service)

    @operation("create_service", TAG, "Deploy a model version as a service", body=NewService, answer=Service,
               status=201, errors=(404, 409, 422), examples=(
                   OpenApiExample("On a CPU", {"name": "faq", "model_version": "6b1f7c1e-5f3a-4a52-9f0e-0d1f2a3b4c5d"},
                                  request_only=True),
               ))  # fmt: skip
    @idempotent()
    def post(self, request: Request) -> Response:
        """The service is READY once its replicas answer."""
        return Response(Service(create_service(actor=self.actor, **self.body(NewService))).data, status=201)


class ServiceView(NativeView):
    @operation("get_service", TAG, "A service", answer=Service, errors=(404,))
    def get(self, request: Request, service_id: UUID) -> Response:
        """With its versions."""
        return Response(Service(access_service(self.actor, service_id)).data)

    @operation("delete_service", TAG, "Delete a service that is not started", status=204, errors=(404, 409))
    def delete(self, request: Request, service_id: UUID) -> Response:
        """Its model versions stay."""
        delete_service(actor=self.actor, service=access_service(self.actor, service_id))
        return Response(status=204)


class ServiceVersionsView(NativeView):
    @operation("add_service_version", TAG, "Add a version to a service", body=NewServiceVersion, answer=ServiceVersion,
               status=201, errors=(404, 409, 422))  # fmt: skip
    @idempotent()
    def post(self, request: Request, service_id: UUID) -> Response:
        """It gets no traffic until it is given some."""
        service = access_service(self.actor, service_id)
        made = add_service_version(actor=self.actor, service=service, **self.body(NewServiceVersion))
        return Response(ServiceVersion(made).data, status=201)


class TrafficView(NativeView):
    @operation("set_traffic", TAG, "Share the requests between versions", body=Traffic, answer=Service,
               errors=(404, 409))  # fmt: skip
    def put(self, request: Request, service_id: UUID) -> Response:
        """Versions that are not named get none."""
        shares = {share["version"]: share["percent"] for share in self.body(Traffic)["shares"]}
        service = set_traffic(actor=self.actor, service=access_service(self.actor, service_id), shares=shares)
        return Response(Service(service).data)


class StartServiceView(NativeView):
    @operation("start_service", TAG, "Start a service", answer=Service, errors=(404, 409, 422))
    @idempotent()
    def post(self, request: Request, service_id: UUID) -> Response:
        """Every replica gets a run."""
        self.body()
        service = start_service(actor=self.actor, service=access_service(self.actor, service_id))
        return Response(Service(service).data)


class StopServiceView(NativeView):
    @operation("stop_service", TAG, "Stop a service", answer=Service, errors=(400, 404, 409))
    def post(self, request: Request, service_id: UUID) -> Response:
        """It can be started again."""
        self.body()
        service = stop_service(actor=self.actor, service=access_service(self.actor, service_id))
        return Response(Service(service).data)


class ReplicasView(NativeView):
    @operation("list_replicas", TAG, "The replicas of a service", answer=listed("Replicas", Replica(many=True)),
               errors=(404,))  # fmt: skip
    def get(self, request: Request, service_id: UUID) -> Response:
        """With what their servers report."""
        replicas = replicas_of(access_service(self.actor, service_id))
        found = [{**replica_facts(replica), "service_version": replica.service_version.number} for replica in replicas]
        return Response({"items": Replica(found, many=True).data})


class ServiceLogView(RunView):
    @operation("read_service_log", TAG, "The log of a replica from a byte on", query=ReplicaLogQuery, answer=Log,
               errors=(404,))  # fmt: skip
    def get(self, request: Request, service_id: UUID) -> Response:
        """Of its newest run."""
        return self.log(service_id, ReplicaLogQuery)

    def run_of(self, object_id: Any) -> Run | None:
        """The run of the replica that the query names. Raises NotFound."""
        service, query = access_service(self.actor, object_id), self.query(ReplicaLogQuery)
        replica = replica_at(service, query["replica"], query.get("version"))
        if replica is None:
            raise NotFound(f"The service {service} has no replica {query['replica']}.", field="replica")
        return replica.run
