"""Pages that start the user's own programs."""

from __future__ import annotations

from dataclasses import dataclass

from django.http import HttpResponse
from django.shortcuts import redirect

from clavier.core.actor import Actor
from clavier.core.errors import DomainError
from clavier.portal.contexts.choices import Option, any_model_options, dataset_options, image_options
from clavier.portal.forms.own_code import OwnCodeForm, OwnEvaluationForm, OwnTaskForm
from clavier.portal.pages import PortalRequest, add_problems, page, show
from clavier.quotas.capacity import groups_with_capacity
from evaluation_app.custom import create_custom_evaluation_task
from finetune_app.custom import create_custom_fine_tune_task

SHARED = (
    "name", "description", "code_folder", "image", "command", "data_folder", "model_folder", "output_folder",
)  # fmt: skip
OF_TASKS = (
    "base_model", "train_dataset", "validation_dataset", "profile_path", "checkpoint_folder", "is_pretrain",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class OwnCodeNew:
    """The form with what can be chosen."""

    form: OwnCodeForm
    models: list[Option]
    datasets: list[Option]
    images: list[Option]


@page("GET", "POST")
def own_task_new(request: PortalRequest) -> HttpResponse:
    """The form of a task of own code, and what it creates."""
    form = OwnTaskForm(request.POST or None, groups=groups_with_capacity(request.actor))
    status = 200
    if request.method == "POST":
        status = 400
        if form.is_valid():
            try:
                task = create_custom_fine_tune_task(
                    actor=request.actor,
                    environment=form.pairs("environment"),
                    hyperparameters=form.pairs("hyperparameters"),
                    resources=form.resources(),
                    options=form.where(),
                    start="save" not in request.POST,
                    **form.words(*SHARED, *OF_TASKS),
                )
                return redirect("portal:task", task.pk)
            except DomainError as error:
                add_problems(form, error)
                status = error.status
    return show(request, "portal/own_task_form.html", own_code_new(request.actor, form), status=status)


@page("GET", "POST")
def own_evaluation_new(request: PortalRequest) -> HttpResponse:
    """The form of an evaluation by an own program, and what it creates."""
    form = OwnEvaluationForm(request.POST or None, groups=groups_with_capacity(request.actor))
    status = 200
    if request.method == "POST":
        status = 400
        if form.is_valid():
            try:
                task = create_custom_evaluation_task(
                    actor=request.actor,
                    environment=form.pairs("environment"),
                    resources=form.resources(),
                    options=form.where(),
                    **form.words(*SHARED, "model_version", "dataset_version"),
                )
                return redirect("portal:evaluation", task.pk)
            except DomainError as error:
                add_problems(form, error)
                status = error.status
    return show(request, "portal/own_evaluation_form.html", own_code_new(request.actor, form), status=status)


def own_code_new(actor: Actor, form: OwnCodeForm) -> OwnCodeNew:
    """Versions and images of the tenant."""
    return OwnCodeNew(form, any_model_options(actor), dataset_options(actor), image_options(actor))
