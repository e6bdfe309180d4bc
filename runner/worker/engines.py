"""Executors by name, one instance a process."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from django.conf import settings
from django.utils.module_loading import import_string

from runner.executors.base import Executor


@cache
def executor(name: str) -> Executor:
    """The executor of a name in ``settings.EXECUTORS``."""
    folder = Path(settings.CLAVIER_EXECUTOR_FOLDER) / name
    folder.mkdir(parents=True, exist_ok=True)
    made: Executor = import_string(settings.EXECUTORS[name])(folder, **settings.EXECUTOR_OPTIONS.get(name, {}))
    return made
