"""Hyperparameter searches."""

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
    YEAR_S,
    AnyObject,
    Choice,
    Flag,
    Identifier,
    Resources,
    Strict,
    Text,
    WholeNumber,
)
from clavier.api.native.nouns.common import Owned, Reference
from clavier.api.native.nouns.fine_tune_tasks import METHODS
from clavier.api.native.rewards import RewardService, with_reward
from clavier.api.native.schema import operation
from clavier.api.native.views import NativeView
from finetune_app.models import PRUNERS, HyperparameterSearch
from finetune_app.search import (
    MAX_PARALLEL,
    MAX_TRIALS,
    access_search,
    best_trial,
    best_version,
    create_search,
    delete_search,
    importances_of,
    stop_search,
    trials_of,
    visible_searches,
)
from runner.contract.knobs import RECIPES

TAG = "hyperparameter searches"
SEARCH_STATES = ("RUNNING", "STOPPED", "COMPLETED")


class Trial(serializers.Serializer[Any]):
    """One set of values."""

    number = serializers.IntegerField(help_text="From 1 on.")
    parameters = serializers.DictField()
    value = serializers.FloatField(allow_null=True, help_text="null: not yet, or it failed.")
    message = serializers.CharField(help_text="Why it has no value.")
    curve = serializers.ListField(help_text="`[[step, value], ...]` of the metric; empty until the trial ends.")
    task = Reference()
    pruned_at = serializers.DateTimeField(allow_null=True, help_text="When it was stopped for falling behind.")
    ended_at = serializers.DateTimeField(allow_null=True)


class SearchItem(Owned):
    """A search in a list."""

    name = serializers.CharField()
    state = serializers.ChoiceField(SEARCH_STATES)
    metric = serializers.CharField()
    maximize = serializers.BooleanField()
    num_trials = serializers.IntegerField()
    num_parallel = serializers.IntegerField()
    pruner = serializers.ChoiceField(PRUNERS)
    pruning_warmup_steps = serializers.IntegerField()
    message = serializers.CharField(help_text="Why it could not go on.")
    ended_at = serializers.DateTimeField(allow_null=True)


class SearchDetail(SearchItem):
    """A search with its trials."""

    space = serializers.DictField()
    task = serializers.DictField(help_text="What every trial's task takes.")
    seed = serializers.IntegerField()
    trials = serializers.SerializerMethodField()
    best = serializers.SerializerMethodField()
    best_version = serializers.SerializerMethodField()
    importances = serializers.SerializerMethodField()

    @extend_schema_field(Trial(many=True))
    def get_trials(self, search: HyperparameterSearch) -> Any:
        """One query."""
        return Trial(trials_of(search), many=True).data

    @extend_schema_field(Trial(allow_null=True))
    def get_best(self, search: HyperparameterSearch) -> Any:
        """The trial with the best value so far."""
        best = best_trial(search)
        return Trial(best).data if best else None

    @extend_schema_field(Reference(allow_null=True))
    def get_best_version(self, search: HyperparameterSearch) -> Any:
        """The model version that it has made."""
        version = best_version(search)
        return Reference(version).data if version else None

    @extend_schema_field(serializers.DictField(child=serializers.FloatField()))
    def get_importances(self, search: HyperparameterSearch) -> Any:
        """Hyperparameter -> its share of what moves the value; empty while too few trials ended."""
        return importances_of(search)


class NewSearch(Strict):
    name = Text(max_length=100, help_text="Also of the model whose versions the trials make.")
    recipe = Choice(tuple(RECIPES))
    method = Choice(METHODS)
    train_dataset = Identifier(help_text="Id of a data set version.")
    validation_dataset = Identifier(required=False, allow_null=True, help_text="Needed for metrics of eval/.")
    base_model = Identifier(required=False, allow_null=True)
    reward_model = Identifier(required=False, allow_null=True)
    reward_service = RewardService()
    tokenizer = Text(required=False, max_length=5000, help_text="Of new models: a file or folder of yours.")
    hyperparameters = AnyObject(required=False, help_text="What is the same in all trials.")
    space = AnyObject(help_text="`{learning_rate: {low: 1e-5, high: 1e-3, log: true}, lora_r: {choices: [8, 16]}}`.")
    metric = Text(required=False, max_length=100, help_text="What a run measures; absent: eval/loss.")
    maximize = Flag(
        required=False, help_text="Whether the largest is the best; absent: the smallest of losses, else the largest."
    )
    num_trials = WholeNumber(min_value=1, max_value=MAX_TRIALS)
    num_parallel = WholeNumber(min_value=1, max_value=MAX_PARALLEL, default=1)
    seed = WholeNumber(min_value=0, max_value=2**32 - 1, default=42)
    pruner = Choice(PRUNERS, default="none", help_text="How trials that fall behind are found; they are stopped.")
    pruning_warmup_steps = WholeNumber(
        min_value=0, max_value=10**8, default=0, help_text="Before which none is stopped."
    )
    resources = Resources(required=False, help_text="Of each trial.")
    options = AnyObject(required=False, help_text=OPTIONS_HELP)
    time_limit_s = WholeNumber(min_value=1, max_value=YEAR_S, required=False, help_text="Of each trial, in seconds.")


class SearchesView(NativeView):
    @operation("list_searches", TAG, "List hyperparameter searches", page_of=SearchItem)
    def get(self, request: Request) -> Response:
        """Newest first."""
        self.filters()
        return self.page(visible_searches(self.actor), SearchItem)

    @operation("create_search", TAG, "Search hyperparameters", body=NewSearch, answer=SearchDetail, status=201,
               errors=(404, 409, 422), examples=(
                   OpenApiExample("Learning rate and rank", {
                       "name": "faq-search", "recipe": "sft", "method": "lora", "train_dataset": "...",
                       "validation_dataset": "...", "base_model": "...", "num_trials": 12, "num_parallel": 2,
                       "space": {"learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
                                 "lora_r": {"choices": [8, 16, 32]}},
                   }, request_only=True),
               ))  # fmt: skip
    @idempotent()
    def post(self, request: Request) -> Response:
        """The first trials start at once; each one that ends starts the next."""
        return Response(
            SearchDetail(create_search(actor=self.actor, **with_reward(self.actor, self.body(NewSearch)))).data,
            status=201,
        )


class SearchView(NativeView):
    @operation("get_search", TAG, "A search with its trials", answer=SearchDetail, errors=(404,))
    def get(self, request: Request, search_id: UUID) -> Response:
        """Values, the best so far, and the model version it made."""
        return Response(SearchDetail(access_search(self.actor, search_id)).data)

    @operation("delete_search", TAG, "Forget a search; its tasks stay", status=204, errors=(404, 409))
    def delete(self, request: Request, search_id: UUID) -> Response:
        """Refused while it runs."""
        delete_search(actor=self.actor, search=access_search(self.actor, search_id))
        return Response(status=204)


class StopSearchView(NativeView):
    @operation("stop_search", TAG, "Stop a search", answer=SearchDetail, errors=(400, 404, 409))
    def post(self, request: Request, search_id: UUID) -> Response:
        """No further trial starts; those that run are stopped."""
        self.body()
        search = stop_search(actor=self.actor, search=access_search(self.actor, search_id))
        return Response(SearchDetail(search).data)
