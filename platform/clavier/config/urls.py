"""Every address of the platform."""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path, re_path
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerView

from clavier.accounts import schema as schema  # its import registers how the OpenAPI document names credentials
from clavier.api.legacy.urls import served_patterns
from clavier.api.native.errors import not_found_view
from clavier.config import health

handler400 = "clavier.config.errors.bad_request"
handler500 = "clavier.config.errors.server_error"

#: The OpenAPI document of the platform API (document 001) stands beside the native one.
PLATFORM_API = {
    "urlconf": "clavier.api.legacy.urls",
    "custom_settings": {
        "TITLE": "Clavier 平台 API",
        "DESCRIPTION": "文档 001 的平台 API。鉴权：`Authorization: Bearer <API 密钥>`。",
        "SCHEMA_PATH_PREFIX": "",
    },
}

admin.autodiscover()

urlpatterns = [
    path("healthz", health.healthz),
    path("readyz", health.readyz),
    path("admin/django-rq/", include("django_rq.urls")),
    path("admin/", admin.site.urls),
    path("i18n/", include("django.conf.urls.i18n")),
    path("api/schema", SpectacularAPIView.as_view(), name="schema"),
    path("api/docs", SpectacularSwaggerView.as_view(url_name="schema"), name="docs"),
    path("api/platform/schema", SpectacularAPIView.as_view(**PLATFORM_API), name="platform-schema"),
    path("api/platform/docs", SpectacularSwaggerView.as_view(url_name="platform-schema"), name="platform-docs"),
    path("api/v1/", include("clavier.api.native.urls")),
    *served_patterns,
    re_path(r"^api/", not_found_view),
    path("", include("clavier.portal.urls")),
]
