"""The frame of every page: navigation and languages."""

from __future__ import annotations

from typing import Any

from django import template
from django.conf import settings
from django.urls import reverse
from django.utils.translation import get_language
from django.utils.translation import gettext_lazy as _

register = template.Library()

SECTIONS = (
    ("dashboard", _("Dashboard")),
    ("datasets", _("Datasets")),
    ("models", _("Models")),
    ("tasks", _("Tasks")),
    ("evaluations", _("Evaluations")),
    ("services", _("Services")),
    ("images", _("Images")),
    ("files", _("Files")),
    ("resources", _("Resources")),
    ("settings", _("Settings")),
)


@register.inclusion_tag("portal/_navigation.html", takes_context=True)
def navigation(context: dict[str, Any]) -> dict[str, Any]:
    """The sections with the present one marked."""
    path = context["request"].path
    entries = []
    for name, text in SECTIONS:
        url = reverse(f"portal:{name}")
        entries.append({"icon": name, "text": text, "url": url, "is_current": _is_within(path, url)})
    return {"entries": entries}


@register.inclusion_tag("portal/_languages.html", takes_context=True)
def languages(context: dict[str, Any]) -> dict[str, Any]:
    """The languages with the present one marked."""
    current = get_language()
    known = [{"code": code, "name": name, "is_current": code == current} for code, name in settings.LANGUAGES]
    return {"known": known, "request": context["request"], "csrf_token": context.get("csrf_token")}


def _is_within(path: str, url: str) -> bool:
    return path == url or (url != "/" and path.startswith(f"{url}/"))
