"""Every route of the document. Each is served with and without ``/api`` in front; no route ends in a slash."""

from __future__ import annotations

from typing import Any

from django.urls import URLPattern, path

from clavier.api.legacy.nouns import evaluation, files, images, models, resources, services, tuning

#: As the document prints them.
ROUTES: tuple[tuple[str, type[Any]], ...] = (
    ("api/file/file/uploadFolder", files.PrivateUploadView),
    ("api/file/file/uploadPublicFolder", files.PublicUploadView),
    ("docker/image/upload", images.RegisterImageView),
    ("docker/image/uploadOld", images.ImportImageView),
    ("model/aiApplication/createAiApplication", models.CreateModelView),
    ("model/aiApplication/getAiApplicationList", models.ModelListView),
    ("model/aiApplication/getAiApplicationDetail", models.ModelDetailView),
    ("model/aiApplicationVersion/getAiApplicationVersionList", models.VersionListView),
    ("model/aiApplicationVersion/getAiApplicationVersionDetail", models.VersionDetailView),
    ("kernel/fineTune/createLlmFineTuneTask", tuning.CreateTaskView),
    ("kernel/fineTune/listLlmFineTuneTask", tuning.TaskListView),
    ("kernel/fineTune/queryLlmFineTuneTaskDetail", tuning.TaskDetailView),
    ("kernel/fineTuneManage/listFineTuneTaskManage", tuning.ManageListView),
    ("model/evaluation/task/create", evaluation.CreateEvaluationView),
    ("model/evaluation/task/page", evaluation.EvaluationPageView),
    ("api/model/evaluation/task/detail/<str:taskId>", evaluation.EvaluationDetailView),
    ("model/modelServer/createModelInferenceServer", services.CreateServerView),
    ("model/modelServer/createModelServer", services.SaveServerView),
    ("model/modelServer/findModelServerPageList", services.ServerPageView),
    ("model/modelServer/findModelServerById", services.ServerByIdView),
    ("model/modelServerVersion/findModelServerVersionById", services.VersionByIdView),
    ("system/config/getRemainResource", resources.RemainView),
    ("resource/configRemake/getQuotaRemainResource", resources.StorageQuotaView),
)


def served(route: str, view: type[Any]) -> list[URLPattern]:
    """Both spellings of a route."""
    bare = route.removeprefix("api/")
    # The document of this dialect is made from ``urlpatterns`` alone, so these stay out of the native one.
    return [path(spelling, view.as_view(schema=None)) for spelling in (bare, f"api/{bare}")]


#: What the OpenAPI document shows.
urlpatterns = [path(route, view.as_view()) for route, view in ROUTES]
#: What the platform answers.
served_patterns = [pattern for route, view in ROUTES for pattern in served(route, view)]
