"""The addresses of the portal."""

from __future__ import annotations

from django.contrib.auth.views import LoginView, LogoutView
from django.urls import path

from clavier.portal.views import dashboard, datasets, evaluations, files, models, services, settings, tasks

app_name = "portal"

urlpatterns = [
    path("", dashboard.dashboard, name="dashboard"),
    path("dashboard/body", dashboard.dashboard_body, name="dashboard_body"),
    path("accounts/login", LoginView.as_view(redirect_authenticated_user=True), name="login"),
    path("accounts/logout", LogoutView.as_view(), name="logout"),
    path("datasets", datasets.dataset_list, name="datasets"),
    path("datasets/new", datasets.dataset_new, name="dataset_new"),
    path("datasets/<uuid:dataset_id>", datasets.dataset_detail, name="dataset"),
    path("datasets/<uuid:dataset_id>/delete", datasets.dataset_delete, name="dataset_delete"),
    path("datasets/versions/<uuid:version_id>/rows", datasets.version_rows, name="dataset_version_rows"),
    path("datasets/versions/<uuid:version_id>/download", datasets.version_download, name="dataset_version_download"),
    path("datasets/versions/<uuid:version_id>/delete", datasets.version_delete, name="dataset_version_delete"),
    path("models", models.model_list, name="models"),
    path("models/rows", models.model_rows, name="model_rows"),
    path("models/new", models.model_new, name="model_new"),
    path("models/<uuid:model_id>", models.model_detail, name="model"),
    path("models/<uuid:model_id>/versions", models.model_versions, name="model_versions"),
    path("models/<uuid:model_id>/delete", models.model_delete, name="model_delete"),
    path("models/versions/<uuid:version_id>/download", models.version_download, name="model_version_download"),
    path("models/versions/<uuid:version_id>/cancel", models.version_cancel, name="model_version_cancel"),
    path("models/versions/<uuid:version_id>/delete", models.version_delete, name="model_version_delete"),
    path("tasks", tasks.task_list, name="tasks"),
    path("tasks/rows", tasks.task_rows, name="task_rows"),
    path("tasks/new", tasks.task_new, name="task_new"),
    path("tasks/<uuid:task_id>", tasks.task_detail, name="task"),
    path("tasks/<uuid:task_id>/status", tasks.task_status, name="task_status"),
    path("tasks/<uuid:task_id>/metrics", tasks.task_metrics, name="task_metrics"),
    path("tasks/<uuid:task_id>/log", tasks.task_log, name="task_log"),
    path("tasks/<uuid:task_id>/log.txt", tasks.task_log_file, name="task_log_file"),
    path("tasks/<uuid:task_id>/start", tasks.task_start, name="task_start"),
    path("tasks/<uuid:task_id>/stop", tasks.task_stop, name="task_stop"),
    path("tasks/<uuid:task_id>/retry", tasks.task_retry, name="task_retry"),
    path("tasks/<uuid:task_id>/delete", tasks.task_delete, name="task_delete"),
    path("evaluations", evaluations.evaluation_list, name="evaluations"),
    path("evaluations/rows", evaluations.evaluation_rows, name="evaluation_rows"),
    path("evaluations/new", evaluations.evaluation_new, name="evaluation_new"),
    path("evaluations/<uuid:task_id>", evaluations.evaluation_detail, name="evaluation"),
    path("evaluations/<uuid:task_id>/status", evaluations.evaluation_status, name="evaluation_status"),
    path("evaluations/<uuid:task_id>/log", evaluations.evaluation_log, name="evaluation_log"),
    path("evaluations/<uuid:task_id>/log.txt", evaluations.evaluation_log_file, name="evaluation_log_file"),
    path("evaluations/<uuid:task_id>/stop", evaluations.evaluation_stop, name="evaluation_stop"),
    path("evaluations/<uuid:task_id>/retry", evaluations.evaluation_retry, name="evaluation_retry"),
    path("evaluations/<uuid:task_id>/delete", evaluations.evaluation_delete, name="evaluation_delete"),
    path("services", services.service_list, name="services"),
    path("services/rows", services.service_rows, name="service_rows"),
    path("services/new", services.service_new, name="service_new"),
    path("services/<uuid:service_id>", services.service_detail, name="service"),
    path("services/<uuid:service_id>/status", services.service_status, name="service_status"),
    path("services/<uuid:service_id>/chat", services.service_chat, name="service_chat"),
    path("services/<uuid:service_id>/start", services.service_start, name="service_start"),
    path("services/<uuid:service_id>/stop", services.service_stop, name="service_stop"),
    path("services/<uuid:service_id>/delete", services.service_delete, name="service_delete"),
    path("services/<uuid:service_id>/replicas/<uuid:run_id>/log", services.service_log, name="service_log"),
    path(
        "services/<uuid:service_id>/replicas/<uuid:run_id>/log.txt", services.service_log_file, name="service_log_file"
    ),
    path("files", files.browse, name="files"),
    path("files/upload", files.upload, name="file_upload"),
    path("files/folders", files.create_folder, name="folder_new"),
    path("files/<uuid:file_id>/download", files.download, name="file_download"),
    path("files/<uuid:file_id>/delete", files.delete, name="file_delete"),
    path("settings", settings.settings, name="settings"),
    path("settings/keys", settings.key_new, name="key_new"),
    path("settings/keys/<uuid:key_id>/revoke", settings.key_revoke, name="key_revoke"),
    path("settings/members", settings.member_new, name="member_new"),
    path("settings/members/<str:username>/role", settings.member_role, name="member_role"),
    path("settings/members/<str:username>/remove", settings.member_remove, name="member_remove"),
]
