"""Registered models and their versions."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.http import HttpResponseBase, StreamingHttpResponse
from drf_spectacular.utils import OpenApiExample, extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from clavier.api.common.idempotency import idempotent
from clavier.api.native.content import attach
from clavier.api.native.fields import Choice, Form, Strict, Text, Words
from clavier.api.native.nouns.common import Owned, Reference
from clavier.api.native.schema import BINARY, listed, operation
from clavier.api.native.views import NativeView
from clavier.runs.queries import progress
from models_app.exports import tar_of_version
from models_app.models import FORMATS, SOURCES, TASKS, VERSION_STATES, ModelVersion
from models_app.presets import presets
from models_app.queries import lineage, visible_models, visible_versions
from models_app.services import (
    IMPORT_SOURCES,
    access_model,
    access_model_version,
    cancel_import,
    delete_model,
    delete_model_version,
    register_model,
    require_usable,
    update_model,
)
from models_app.standalone import FORMS, PRECISIONS, export_version

_NAME_HELP = "Unique in the tenant."


class Model(Owned):
    """A named model; what is tuned, judged and served are its versions."""

    name = serializers.CharField(help_text=_NAME_HELP)
    description = serializers.CharField()
    license = serializers.CharField()
    tags = serializers.ListField(child=serializers.CharField())


class ModelItem(Model):
    """A model in a list."""

    num_versions = serializers.IntegerField()


class ModelVersionItem(Owned):
    """One set of weights with its tokenizer."""

    model = Reference()
    number = serializers.IntegerField(help_text="From 1 on.")
    name = serializers.CharField(source="__str__", help_text="`model@number`.")
    state = serializers.ChoiceField(VERSION_STATES, help_text="Only a ready version can be used.")
    message = serializers.CharField(help_text="Why the import failed.")
    source = serializers.ChoiceField(SOURCES)  # type: ignore[assignment]
    location = serializers.CharField(help_text="Where it was imported from.")
    revision = serializers.CharField()
    format = serializers.ChoiceField(FORMATS)
    image = Reference(source="image_version", allow_null=True, help_text="Of the format image: what serves.")
    declarations = serializers.ListField(
        child=serializers.DictField(), help_text="What may be set of it: `[{name, type, value, range, is_editable}]`."
    )
    task = serializers.ChoiceField(TASKS, help_text="Only a version for generation can be served, judged and tuned.")
    base_version = Reference(allow_null=True, help_text="What it was tuned from.")
    dataset_version = Reference(allow_null=True, help_text="What it was tuned on.")
    run_id = serializers.UUIDField(allow_null=True, help_text="The run that imported or made it.")
    architecture = serializers.CharField()
    num_parameters = serializers.IntegerField(allow_null=True)
    size_bytes = serializers.IntegerField()
    fingerprint = serializers.CharField(help_text="sha256 over weights and tokenizer.")
    metrics = serializers.DictField(help_text="What its training reported at the end.")


class ModelVersionDetail(ModelVersionItem):
    """A version with its lineage and, while it is imported, the progress."""

    render_hash = serializers.CharField(help_text="Hash of template, special tokens and stops.")
    facts = serializers.DictField(help_text="What the program that made it wrote into its manifest.")
    lineage = serializers.SerializerMethodField(help_text="The version and all it was made from, newest first.")
    import_progress = serializers.SerializerMethodField(help_text="Newest phase and progress; empty when ended.")

    @extend_schema_field(Reference(many=True))
    def get_lineage(self, version: ModelVersion) -> Any:
        """One query a generation."""
        return Reference(lineage(version), many=True).data

    def get_import_progress(self, version: ModelVersion) -> dict[str, Any]:
        """Read from the run's folder."""
        return progress(version.run_id) if version.state == "importing" and version.run_id else {}


class ModelFilters(Form):
    search = Text(default="", allow_blank=True, max_length=200, help_text="Text in the name or description.")


class NewModel(Strict):
    name = Text(max_length=100, help_text="A known name gets a further version.")
    source = Choice(  # type: ignore[assignment]  # an item's own name, which the framework takes away
        IMPORT_SOURCES, help_text="folder: your files; path: a folder of the server; image: an image version; or a hub."
    )
    location = Text(
        max_length=1000, help_text="`private/models/qwen`, `/srv/models/qwen`, or a hub id such as `Qwen/Qwen2.5-0.5B`."
    )
    revision = Text(required=False, allow_blank=True, max_length=100, help_text="Branch, tag or commit on the hub.")
    description = Text(required=False, allow_blank=True, max_length=20_000)
    license = Text(required=False, allow_blank=True, max_length=100)
    tags = Words(required=False)
    declarations = serializers.ListField(
        child=serializers.DictField(), required=False, max_length=100,
        help_text="What may be set later: `[{name, type: int float bool or str, value, range, is_editable}]`.",
    )  # fmt: skip


class ChangedModel(Strict):
    name = Text(required=False, max_length=100, help_text=_NAME_HELP)
    description = Text(required=False, allow_blank=True, max_length=20_000)
    license = Text(required=False, allow_blank=True, max_length=100)
    tags = Words(required=False)


class Preset(serializers.Serializer[Any]):
    """A well-known base model."""

    name = serializers.CharField()
    huggingface = serializers.CharField(help_text="Its id there.")
    modelscope = serializers.CharField(help_text="Its id there.")
    parameters_billion = serializers.FloatField()
    memory_gib = serializers.IntegerField(help_text="Of one GPU, for LoRA in bf16.")
    use_en = serializers.CharField()
    use_zh = serializers.CharField()


class ModelsView(NativeView):
    @operation("list_models", "models", "List models", query=ModelFilters, page_of=ModelItem)
    def get(self, request: Request) -> Response:
        """Newest first."""
        return self.page(visible_models(self.actor, **self.filters(ModelFilters)), ModelItem)

    @operation("register_model", "models", "Register a base model; a run imports it", body=NewModel,
               answer=ModelVersionDetail, status=201, errors=(404, 409, 422), examples=(
                   OpenApiExample("From a hub", {"name": "qwen2.5-0.5b", "source": "modelscope",
                                                 "location": "Qwen/Qwen2.5-0.5B-Instruct"}, request_only=True),
                   OpenApiExample("From your files", {"name": "mine", "source": "folder",
                                                      "location": "private/models/mine"}, request_only=True),
               ))  # fmt: skip
    @idempotent()
    def post(self, request: Request) -> Response:
        """Answers the version, which is ready once its import has ended."""
        version = register_model(actor=self.actor, **self.body(NewModel))
        return Response(ModelVersionDetail(version).data, status=201)


class Export(Strict):
    form = Choice(FORMS, help_text="merged: full weights of an adapter and its base; gguf: with a Modelfile.")
    name = Text(required=False, max_length=100, help_text="The model that gets the version. Absent: the same one.")
    precision = Choice(PRECISIONS, required=False, help_text="Of a GGUF file's matrices. Absent: by size.")


class ModelView(NativeView):
    @operation("get_model", "models", "A model", answer=Model, errors=(404,))
    def get(self, request: Request, model_id: UUID) -> Response:
        """Its versions have a list of their own."""
        return Response(Model(access_model(self.actor, model_id)).data)

    @operation("change_model", "models", "Change name, description, license or tags", body=ChangedModel, answer=Model,
               errors=(404, 409))  # fmt: skip
    def patch(self, request: Request, model_id: UUID) -> Response:
        """What is absent stays."""
        model = access_model(self.actor, model_id)
        return Response(Model(update_model(actor=self.actor, model=model, **self.body(ChangedModel))).data)

    @operation("delete_model", "models", "Delete a model with all its versions", status=204, errors=(404, 409))
    def delete(self, request: Request, model_id: UUID) -> Response:
        """Refused while something refers to a version."""
        delete_model(actor=self.actor, model=access_model(self.actor, model_id))
        return Response(status=204)


class ModelVersionsView(NativeView):
    @operation("list_model_versions", "models", "List the versions of a model", page_of=ModelVersionItem, errors=(404,))
    def get(self, request: Request, model_id: UUID) -> Response:
        """Newest first."""
        self.filters()
        model = access_model(self.actor, model_id)
        return self.page(visible_versions(self.actor).filter(model=model), ModelVersionItem)


class ModelVersionView(NativeView):
    @operation("get_model_version", "models", "A version with lineage and import progress", answer=ModelVersionDetail,
               errors=(404,))  # fmt: skip
    def get(self, request: Request, version_id: UUID) -> Response:
        """What it is and where it came from."""
        return Response(ModelVersionDetail(access_model_version(self.actor, version_id)).data)

    @operation("delete_model_version", "models", "Delete a version and its files", status=204, errors=(404, 409))
    def delete(self, request: Request, version_id: UUID) -> Response:
        """Refused while something refers to it."""
        delete_model_version(actor=self.actor, version=access_model_version(self.actor, version_id))
        return Response(status=204)


class ModelVersionDownloadView(NativeView):
    @operation("download_model_version", "models", "Download a version as a tar", answer=BINARY,
               media_type="application/x-tar", errors=(404, 409))  # fmt: skip
    def get(self, request: Request, version_id: UUID) -> HttpResponseBase:
        """A stream of known length; nothing is packed beforehand."""
        version = access_model_version(self.actor, version_id)
        require_usable(version, for_download=True)
        content, size_bytes = tar_of_version(version)
        response = StreamingHttpResponse(content, headers={"Content-Length": str(size_bytes)})
        attach(response, f"{version.model.name}-{version.number}.tar", "application/x-tar")
        return response


class ExportView(NativeView):
    @operation("export_model_version", "models", "Merge an adapter, or make a GGUF file", body=Export,
               answer=ModelVersionDetail, status=201, errors=(404, 409, 422), examples=(
                   OpenApiExample("For Ollama", {"form": "gguf", "precision": "f16"}, request_only=True),
               ))  # fmt: skip
    @idempotent()
    def post(self, request: Request, version_id: UUID) -> Response:
        """A new version, ready once its run has ended. A merge that changes the answers fails."""
        version = access_model_version(self.actor, version_id)
        made = export_version(actor=self.actor, version=version, **self.body(Export))
        return Response(ModelVersionDetail(made).data, status=201)


class CancelImportView(NativeView):
    @operation("cancel_import", "models", "Stop the import of a version", body=None, answer=ModelVersionDetail,
               errors=(400, 404, 409))  # fmt: skip
    def post(self, request: Request, version_id: UUID) -> Response:
        """The version becomes failed once the import has stopped."""
        self.body()
        version = access_model_version(self.actor, version_id)
        cancel_import(actor=self.actor, version=version)
        return Response(ModelVersionDetail(access_model_version(self.actor, version_id)).data)


class ModelPresetsView(NativeView):
    @operation("list_model_presets", "models", "List well-known base models",
               answer=listed("ModelPresets", Preset(many=True)))  # fmt: skip
    def get(self, request: Request) -> Response:
        """What a new user may begin with."""
        return Response({"items": presets()})
