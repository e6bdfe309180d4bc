"""Executors: one instance a process for each engine that nodes are served by."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from django.conf import settings
from django.utils.module_loading import import_string

from clavier.quotas.models import Node
from runner.executors.base import Executor, ExecutorError
from runner.executors.local_process import LocalProcessExecutor

logger = logging.getLogger(__name__)


class Engine(NamedTuple):
    """An executor's name in ``settings.EXECUTORS`` and the address of its engine; blank: the executor's default."""

    executor: str
    url: str = ""

    def __str__(self) -> str:
        return f"{self.executor} at {self.url}" if self.url else self.executor


def engine_of(node: Node) -> Engine:
    """What starts containers on a node."""
    return Engine(node.executor, node.engine_url)


def engines_of(nodes: Iterable[Node]) -> list[Engine]:
    """Those of some nodes, and that of this machine."""
    return sorted({Engine(settings.CLAVIER_EXECUTOR), *map(engine_of, nodes)})


def get_ready() -> None:
    """Find out once, before a worker forks, what each of its jobs would have to find out again."""
    made = executor(Engine(settings.CLAVIER_EXECUTOR))
    if isinstance(made, LocalProcessExecutor):
        try:
            made.isolation()
        except ExecutorError as error:  # a job meets it again, and says it to whom it concerns
            logger.warning("%s", error)


def cool_down() -> None:
    """Let go what this machine's executor keeps ready for further launches; runs go on."""
    made = executor(Engine(settings.CLAVIER_EXECUTOR))
    if isinstance(made, LocalProcessExecutor):
        made.cool_down()


@cache
def executor(engine: Engine) -> Executor:
    """The executor that talks to an engine; each has a folder of its own for what it must not forget."""
    folder = Path(settings.CLAVIER_EXECUTOR_FOLDER) / engine.executor
    options = dict(settings.EXECUTOR_OPTIONS.get(engine.executor, {}))
    if engine.url:
        folder /= f"engine-{hashlib.sha256(engine.url.encode()).hexdigest()[:16]}"
        options["engine_url"] = engine.url
    folder.mkdir(parents=True, exist_ok=True)
    made: Executor = import_string(settings.EXECUTORS[engine.executor])(folder, **options)
    return made
