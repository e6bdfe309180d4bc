"""What must be true before the platform starts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, register
from django.utils.module_loading import import_string

from runner.contract.run_spec import RUN_KINDS

#: The tag of what costs little to look at and must be right before any run starts.
CLAVIER = "clavier"


@register()
def dotted_names_import(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Every hook, executor and ledger of the settings exists, and every kind of run has a hook."""
    problems: list[CheckMessage] = []
    named = {
        f"{setting}[{name!r}]": dotted
        for setting in ("RUN_FINISHED_HOOKS", "EXECUTORS", "STORAGE_LEDGERS")
        for name, dotted in getattr(settings, setting).items()
    }
    named |= {f"WATCHES[{dotted!r}]": dotted for dotted in settings.WATCHES}
    for place, dotted in {**named, "LIVE_ATTEMPTS": settings.LIVE_ATTEMPTS}.items():
        try:
            import_string(dotted)
        except ImportError as error:
            problems.append(Error(f"{place}: {error}", id="clavier.E001"))
    missing = sorted(set(RUN_KINDS) - set(settings.RUN_FINISHED_HOOKS))
    if missing:
        problems.append(Error(f"RUN_FINISHED_HOOKS lacks {', '.join(missing)}", id="clavier.E002"))
    return problems


@register(CLAVIER)
def production_is_safe(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """In production: no DEBUG, an own secret, TLS cookies, and no user code without a container around it."""
    if settings.CLAVIER_ENVIRONMENT != "production":
        return []
    problems: list[CheckMessage] = []
    if settings.DEBUG:
        problems.append(Error("DEBUG is on in production.", hint="Unset DEBUG.", id="clavier.E010"))
    if stored_key() == settings.SECRET_KEY or len(settings.SECRET_KEY) < 50:
        hint = "Set SECRET_KEY to 50 or more random characters, the same for all processes."
        problems.append(Error("SECRET_KEY is not set for production.", hint=hint, id="clavier.E011"))
    if settings.ALLOW_CUSTOM_CODE and settings.CLAVIER_EXECUTOR == "local_process":
        hint = "Unset ALLOW_CUSTOM_CODE, or use an executor with containers: local processes do not isolate tenants."
        message = "The executor 'local_process' may not run custom code in production."
        problems.append(Error(message, hint=hint, id="clavier.E012"))
    if settings.ALLOWED_HOSTS == ["*"]:
        problems.append(Error("ALLOWED_HOSTS allows every host.", hint="Name your hosts.", id="clavier.E013"))
    return problems


@register(CLAVIER)
def containers_can_run(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """With Docker: root, an image for the platform's programs, what is bound into it, and a wrapper or a compiler."""
    if settings.CLAVIER_EXECUTOR != "docker_engine":
        return []
    options = settings.EXECUTOR_OPTIONS["docker_engine"]
    problems: list[CheckMessage] = []
    if os.geteuid() != 0:
        message = "The executor 'docker_engine' needs root: programs get users of their own."
        problems.append(Error(message, hint="Run the platform as root.", id="clavier.E020"))
    if not options["program_image"]:
        hint = "Set DOCKER_PROGRAM_IMAGE to the id or tag of an image with the platform's programs (docs/docker.md)."
        problems.append(Error("DOCKER_PROGRAM_IMAGE is not set.", hint=hint, id="clavier.E021"))
    for path in (*options["program_binds"], *filter(None, [options["wrapper"]])):
        if not os.path.isabs(path) or not os.path.exists(path):
            message = f"{path} of DOCKER_PROGRAM_BINDS or DOCKER_WRAPPER does not exist, or is not an absolute path."
            problems.append(Error(message, id="clavier.E022"))
    if not options["wrapper"] and not any(map(shutil.which, ("cc", "gcc", "clang"))):
        hint = "Install gcc and libc6-dev, or set DOCKER_WRAPPER (docs/docker.md)."
        problems.append(Error("There is no C compiler for the wrapper of containers.", hint=hint, id="clavier.E023"))
    return problems


def stored_key() -> str:
    """The secret that the embedded default made for itself, or nothing."""
    path = Path(settings.CLAVIER_HOME) / "secret_key"
    return path.read_text().strip() if path.exists() else ""
