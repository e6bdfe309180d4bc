"""Recipes and their hyperparameters, for forms and programs."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from clavier.api.native.fields import Strict, Text
from clavier.api.native.schema import listed, operation
from clavier.api.native.views import NativeView
from clavier.core.errors import NotFound
from clavier.core.yaml_text import MAX_YAML_BYTES
from finetune_app.train_config import read_train_config
from runner.contract.knob_values import Knob
from runner.contract.knobs import RECIPES, HyperparametersInvalid, knobs_of


class RecipeItem(serializers.Serializer[Any]):
    recipe = serializers.CharField()
    methods = serializers.ListField(child=serializers.CharField())


class Help(serializers.Serializer[Any]):
    en = serializers.CharField(source="help_en")
    zh = serializers.CharField(source="help_zh")


class Hyperparameter(serializers.Serializer[Any]):
    """One hyperparameter: what it is and what it may be."""

    name = serializers.CharField()
    type = serializers.ChoiceField(("int", "float", "bool", "str", "list"))
    default = serializers.JSONField(allow_null=True, help_text="null: not set.")
    minimum = serializers.FloatField(allow_null=True)
    maximum = serializers.FloatField(allow_null=True)
    choices = serializers.ListField(child=serializers.CharField(), help_text="Empty: any value of the type.")
    unit = serializers.CharField(help_text="Empty: a plain number.")
    counts_with = serializers.SerializerMethodField(
        help_text="Another hyperparameter and its values, without which this one is refused; null: counts always."
    )
    help = Help(source="*")

    def get_counts_with(self, knob: Knob) -> dict[str, list[str]] | None:
        return {knob.counts_with[0]: list(knob.counts_with[1])} if knob.counts_with else None


class Recipe(serializers.Serializer[Any]):
    """A recipe with one of its methods."""

    recipe = serializers.CharField()
    method = serializers.CharField()
    hyperparameters = Hyperparameter(many=True)


class RecipesView(NativeView):
    @operation("list_recipes", "recipes", "List the recipes and their methods",
               answer=listed("Recipes", RecipeItem(many=True)))  # fmt: skip
    def get(self, request: Request) -> Response:
        """What a fine-tune task may name."""
        return Response({"items": [{"recipe": name, "methods": list(methods)} for name, methods in RECIPES.items()]})


class RecipeView(NativeView):
    @operation("get_recipe", "recipes", "The hyperparameters of a recipe with a method", answer=Recipe, errors=(404,))
    def get(self, request: Request, recipe: str, method: str) -> Response:
        """In the order of the forms."""
        found = {"recipe": recipe, "method": method, "hyperparameters": hyperparameters(recipe, method)}
        return Response(Recipe(found).data)


class ConfigText(Strict):
    """A YAML file."""

    content = Text(max_length=MAX_YAML_BYTES, help_text="The YAML: `task_type: sft`, `learning_rate: 2e-5` ...")


class TrainConfigAnswer(serializers.Serializer[Any]):
    """What a configuration means here."""

    recipe = serializers.ChoiceField(tuple(RECIPES))
    method = serializers.CharField()
    names = serializers.DictField(help_text="Model, data set and so on, as they are written.")
    hyperparameters = serializers.DictField(help_text="All of them, defaults included.")
    num_gpus = serializers.IntegerField(help_text="0: the file does not say.")
    search = serializers.DictField(help_text="num_trials and metric of a hyperparameter search; empty: none.")


class CheckConfigView(NativeView):
    @operation("check_train_config", "recipes", "Read a YAML training configuration", body=ConfigText,
               answer=TrainConfigAnswer)  # fmt: skip
    def post(self, request: Request) -> Response:
        """Nothing is kept: every bad key is named, or all that a task needs is answered."""
        return Response(TrainConfigAnswer(read_train_config(self.body(ConfigText)["content"])).data)


def hyperparameters(recipe: str, method: str) -> tuple[Knob, ...]:
    """The table's rows. Raises NotFound."""
    try:
        return knobs_of(recipe, method)
    except HyperparametersInvalid as error:
        raise NotFound(f"There is no such recipe: {error}.", field=error.problems[0].field) from error
