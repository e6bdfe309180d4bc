"""Data sets, their versions, and their rows."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.http import HttpResponseBase
from drf_spectacular.utils import OpenApiExample, extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from clavier.api.common.forms import WholeFormParser
from clavier.api.common.idempotency import idempotent
from clavier.api.common.json_body import StrictJsonParser
from clavier.api.native.content import RANGE, send_file
from clavier.api.native.fields import Choice, Form, Strict, Text, WholeNumber, Words
from clavier.api.native.nouns.common import Owned, Reference
from clavier.api.native.schema import BINARY, operation
from clavier.api.native.views import FormView, NativeView
from datasets_app.derive import compare_versions, derive_version, split_version
from datasets_app.formats import FORMATS
from datasets_app.mapping import read_mapping
from datasets_app.models import Dataset
from datasets_app.preview import MAX_ROWS_AT_ONCE, open_original, read_rows
from datasets_app.queries import access_dataset, access_dataset_version, access_rows_of, search, versions_of
from datasets_app.services import (
    create_dataset,
    create_dataset_with_file,
    delete_dataset,
    delete_version,
    update_dataset,
    upload_version,
)
from datasets_app.steps import SPLITS, STEP_NAMES
from datasets_app.validation import KINDS, PURPOSES

_PURPOSE_HELP = "What the rows are for; demands their columns. Absent: whatever the columns look like."
_MAPPING_HELP = (
    'JSON, the platform\'s column names to the file\'s: `{"question": "q"}`. '
    "Absent: guessed where the file's own names fit nothing."
)
_FILE_HELP = "A .json, .jsonl, .csv or .txt file in UTF-8, or .parquet, or .xlsx (the first sheet)."
SPLIT_HELP = "Which split the rows are, for the search for leakage. Absent: none."
SUBSET_HELP = "Which part of the data set the rows are, such as a language. Absent: `Default`."
_NAME_HELP = "Unique in the tenant."


class Column(serializers.Serializer[Any]):
    name = serializers.CharField()
    type = serializers.CharField(help_text="string, integer, number, boolean, list, object, null or mixed.")
    non_null = serializers.IntegerField(help_text="Rows in which it has a value.")


class DatasetVersionItem(Owned):
    """One uploaded file that passed the gate; never changed."""

    dataset = Reference()
    number = serializers.IntegerField(help_text="From 1 on.")
    name = serializers.CharField(source="__str__", help_text="The data set's name and the number.")
    kind = serializers.ChoiceField(KINDS, help_text="What its columns make it.")
    format = serializers.ChoiceField(FORMATS, help_text="Of the uploaded file.")
    file_name = serializers.CharField()
    size_bytes = serializers.IntegerField()
    sha256 = serializers.CharField()
    num_samples = serializers.IntegerField()
    split = serializers.CharField(help_text="train, validation, test or empty.")
    subset = serializers.CharField(help_text="Which part of the data set it is.")
    columns = Column(source="fields", many=True)
    is_usable = serializers.BooleanField()


class DatasetVersionDetail(DatasetVersionItem):
    """A version with what the gate found."""

    findings = serializers.DictField(help_text="`{errors, warnings, counts, items}`; items have line and column.")
    mapping = serializers.DictField(
        child=serializers.CharField(), help_text="Columns that were renamed: ours to the file's."
    )
    parent = Reference(allow_null=True)
    steps = serializers.ListField(child=serializers.DictField(), help_text="What was done to the parent's rows.")
    changes = serializers.DictField(help_text="`{removed, changed, personal_data}`, counted by step.")
    statistics = serializers.DictField(help_text="`{row_bytes: {min, mean, max}, labels: {label: rows}}`.")


class DatasetFields(Owned):
    name = serializers.CharField(help_text=_NAME_HELP)
    description = serializers.CharField()
    languages = serializers.ListField(child=serializers.CharField())
    tags = serializers.ListField(child=serializers.CharField())
    license = serializers.CharField()
    task = serializers.CharField(help_text="What it is for, in its owner's words.")


class DatasetItem(DatasetFields):
    """A data set in a list."""

    num_versions = serializers.IntegerField()
    newest_number = serializers.IntegerField(allow_null=True, help_text="Of its newest version.")


class DatasetDetail(DatasetFields):
    """A data set with its newest version."""

    newest_version = serializers.SerializerMethodField()

    @extend_schema_field(DatasetVersionDetail(allow_null=True))
    def get_newest_version(self, dataset: Dataset) -> Any:
        """One query."""
        newest = versions_of(dataset).first()
        return DatasetVersionDetail(newest).data if newest else None


class DatasetFilters(Form):
    search = Text(default="", allow_blank=True, max_length=200, help_text="Text in the name, description or a tag.")
    tag = Text(default="", allow_blank=True, max_length=100, help_text="Exactly this tag.")


class NewDataset(Strict):
    name = Text(max_length=100, help_text=_NAME_HELP)
    description = Text(required=False, allow_blank=True, max_length=20_000)
    languages = Words(required=False, help_text="Such as zh, en.")
    tags = Words(required=False)
    license = Text(required=False, allow_blank=True, max_length=100)
    task = Text(required=False, allow_blank=True, max_length=100, help_text="What it is for, in your words.")


class NewDatasetWithFile(NewDataset, Form):
    """A data set and its first version."""

    file = serializers.FileField(allow_empty_file=True, help_text=_FILE_HELP)
    purpose = Choice(tuple(PURPOSES), required=False, help_text=_PURPOSE_HELP)
    mapping = Text(required=False, max_length=10_000, help_text=_MAPPING_HELP)
    split = Choice(SPLITS, required=False, help_text=SPLIT_HELP)
    subset = Text(required=False, allow_blank=True, max_length=100, help_text=SUBSET_HELP)


class ChangedDataset(NewDataset):
    name = Text(required=False, max_length=100, help_text=_NAME_HELP)


class NewVersion(Form):
    file = serializers.FileField(allow_empty_file=True, help_text=_FILE_HELP)
    purpose = Choice(tuple(PURPOSES), required=False, help_text=_PURPOSE_HELP)
    mapping = Text(required=False, max_length=10_000, help_text=_MAPPING_HELP)
    split = Choice(SPLITS, required=False, help_text=SPLIT_HELP)
    subset = Text(required=False, allow_blank=True, max_length=100, help_text=SUBSET_HELP)


class Derivation(Strict):
    steps = serializers.ListField(
        child=serializers.DictField(),
        help_text="In order: " + ", ".join(f"`{name}`" for name in STEP_NAMES) + ", each with its options.",
    )


class Split(Strict):
    splits = serializers.DictField(help_text='Shares that sum to 1: `{"train": 0.8, "validation": 0.1, "test": 0.1}`.')
    seed = WholeNumber(min_value=0, max_value=2**32 - 1, default=42, help_text="Another seed, another split.")


class Splits(serializers.Serializer[Any]):
    train = DatasetVersionDetail()
    validation = DatasetVersionDetail(required=False)
    test = DatasetVersionDetail(required=False)


class DiffQuery(Form):
    against = serializers.UUIDField(
        required=False, help_text="The other version. Absent: the parent, else the version before."
    )


class Diff(serializers.Serializer[Any]):
    added = serializers.IntegerField(help_text="Rows that only this version has.")
    removed = serializers.IntegerField(help_text="Rows that only the other version has.")
    common = serializers.IntegerField()
    added_samples = serializers.ListField(child=serializers.DictField(), help_text="The first 20.")
    removed_samples = serializers.ListField(child=serializers.DictField(), help_text="The first 20.")


class RowsQuery(Form):
    start = WholeNumber(min_value=0, max_value=2**62, default=0, help_text="Number of the first row, from 0.")
    count = WholeNumber(min_value=1, max_value=MAX_ROWS_AT_ONCE, default=20, help_text="How many rows.")


class Rows(serializers.Serializer[Any]):
    start = serializers.IntegerField()
    num_samples = serializers.IntegerField(help_text="Rows of the whole version.")
    items = serializers.ListField(child=serializers.DictField(), help_text="The rows.")


class DatasetsView(NativeView):
    parser_classes = (StrictJsonParser, WholeFormParser)

    @operation("list_datasets", "datasets", "List data sets", query=DatasetFilters, page_of=DatasetItem)
    def get(self, request: Request) -> Response:
        """Newest first."""
        filters = self.filters(DatasetFilters)
        return self.page(search(self.actor, filters["search"], tag=filters["tag"]), DatasetItem)

    @operation("create_dataset", "datasets", "Create a data set; as a form, with its first version", body=NewDataset,
               form=NewDatasetWithFile, answer=DatasetDetail, status=201, errors=(409, 507), examples=(
                   OpenApiExample("Without data yet", {"name": "客服问答", "tags": ["faq"], "languages": ["zh"]},
                                  request_only=True),
               ))  # fmt: skip
    @idempotent(atomic=False)
    def post(self, request: Request) -> Response:
        """JSON makes an empty data set, a form one with a version, or neither."""
        if isinstance(request.data, dict) and not request.FILES and request.content_type != WholeFormParser.media_type:
            return created(create_dataset(actor=self.actor, **self.body(NewDataset)))
        form = with_mapping(self.body(NewDatasetWithFile))
        upload = form.pop("file")
        version = create_dataset_with_file(actor=self.actor, upload=upload, file_name=upload.name, **form)
        return created(version.dataset)


class DatasetView(NativeView):
    @operation("get_dataset", "datasets", "A data set with its newest version", answer=DatasetDetail, errors=(404,))
    def get(self, request: Request, dataset_id: UUID) -> Response:
        """With what the gate found in that version."""
        return Response(DatasetDetail(access_dataset(self.actor, dataset_id)).data)

    @operation("change_dataset", "datasets", "Change name, description, tags ...", body=ChangedDataset,
               answer=DatasetDetail, errors=(404, 409))  # fmt: skip
    def patch(self, request: Request, dataset_id: UUID) -> Response:
        """What is absent stays."""
        dataset = access_dataset(self.actor, dataset_id)
        changed = update_dataset(actor=self.actor, dataset=dataset, **self.body(ChangedDataset))
        return Response(DatasetDetail(changed).data)

    @operation("delete_dataset", "datasets", "Delete a data set with all its versions", status=204, errors=(404, 409))
    def delete(self, request: Request, dataset_id: UUID) -> Response:
        """Refused while something refers to a version."""
        delete_dataset(actor=self.actor, dataset=access_dataset(self.actor, dataset_id))
        return Response(status=204)


class DatasetVersionsView(FormView):
    @operation("list_dataset_versions", "datasets", "List the versions of a data set", page_of=DatasetVersionItem,
               errors=(404,))  # fmt: skip
    def get(self, request: Request, dataset_id: UUID) -> Response:
        """Newest first."""
        self.filters()
        return self.page(versions_of(access_dataset(self.actor, dataset_id)), DatasetVersionItem)

    @operation("upload_dataset_version", "datasets", "Upload a file as the next version", form=NewVersion,
               answer=DatasetVersionDetail, status=201, errors=(404, 409, 507))  # fmt: skip
    @idempotent(atomic=False)
    def post(self, request: Request, dataset_id: UUID) -> Response:
        """A file with errors is refused with the first of them, by line; nothing is stored then."""
        dataset = access_dataset(self.actor, dataset_id)
        form = with_mapping(self.body(NewVersion))
        upload = form.pop("file")
        version = upload_version(actor=self.actor, dataset=dataset, upload=upload, file_name=upload.name, **form)
        return Response(DatasetVersionDetail(version).data, status=201)


class DatasetVersionView(NativeView):
    @operation("get_dataset_version", "datasets", "A version with what the gate found", answer=DatasetVersionDetail,
               errors=(404,))  # fmt: skip
    def get(self, request: Request, version_id: UUID) -> Response:
        """Counts, columns, findings."""
        return Response(DatasetVersionDetail(access_dataset_version(self.actor, version_id)).data)

    @operation("delete_dataset_version", "datasets", "Delete a version", status=204, errors=(404, 409))
    def delete(self, request: Request, version_id: UUID) -> Response:
        """Refused while something refers to it."""
        delete_version(actor=self.actor, version=access_dataset_version(self.actor, version_id))
        return Response(status=204)


class DeriveView(NativeView):
    @operation("derive_dataset_version", "datasets", "Make the next version by steps", body=Derivation,
               answer=DatasetVersionDetail, status=201, errors=(404, 409, 507), examples=(
                   OpenApiExample("Clean", {"steps": [{"step": "deduplicate", "near": True}, {"step": "deidentify"}]},
                                  request_only=True),
               ))  # fmt: skip
    @idempotent(atomic=False)
    def post(self, request: Request, version_id: UUID) -> Response:
        """The version itself stays as it is. Refused when the steps change nothing."""
        version = access_dataset_version(self.actor, version_id)
        made = derive_version(actor=self.actor, version=version, **self.body(Derivation))
        return Response(DatasetVersionDetail(made).data, status=201)


class SplitView(NativeView):
    @operation("split_dataset_version", "datasets", "Split a version into train, validation and test", body=Split,
               answer=Splits, status=201, errors=(404, 507))  # fmt: skip
    @idempotent(atomic=False)
    def post(self, request: Request, version_id: UUID) -> Response:
        """A new version for each split. Equal rows always land in the same one."""
        version = access_dataset_version(self.actor, version_id)
        made = split_version(actor=self.actor, version=version, **self.body(Split))
        return Response(Splits(made).data, status=201)


class DiffView(NativeView):
    @operation("compare_dataset_versions", "datasets", "What differs between two versions", query=DiffQuery,
               answer=Diff, errors=(404,))  # fmt: skip
    def get(self, request: Request, version_id: UUID) -> Response:
        """Rows of this version that the other lacks, and the other way round; the first of each are listed."""
        new = access_dataset_version(self.actor, version_id)
        against = self.query(DiffQuery).get("against")
        old = access_dataset_version(self.actor, against, field="against") if against else None
        return Response(compare_versions(actor=self.actor, old=old, new=new))


class DatasetRowsView(NativeView):
    @operation("read_dataset_rows", "datasets", "Read rows of a version", query=RowsQuery, answer=Rows, errors=(404,))
    def get(self, request: Request, version_id: UUID) -> Response:
        """Any place of a version of any size is equally near. After 32 MiB an answer ends early."""
        version = access_rows_of(self.actor, version_id)
        query = self.query(RowsQuery)
        found = {"start": query["start"], "num_samples": version.num_samples, "items": read_rows(version, **query)}
        return Response(found)


class DatasetContentView(NativeView):
    @operation("download_dataset_version", "datasets", "Download a version's file as it was uploaded", answer=BINARY,
               media_type="application/octet-stream", parameters=(RANGE,), errors=(404, 416))  # fmt: skip
    def get(self, request: Request, version_id: UUID) -> HttpResponseBase:
        """The ETag is the sha256 of the content."""
        version = access_dataset_version(self.actor, version_id)
        return send_file(request, open_original(version), version.file_name, sha256=version.sha256)


def with_mapping(form: dict[str, Any]) -> dict[str, Any]:
    """The form's fields with the mapping read from its JSON."""
    return form | {"mapping": read_mapping(form["mapping"])} if form.get("mapping") else form


def created(dataset: Dataset) -> Response:
    """201 with the data set."""
    return Response(DatasetDetail(dataset).data, status=201)
