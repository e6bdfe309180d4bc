"""What takes its time, done beside the reconciler's passes. Starts and stops have threads of their own (``hands``)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from django.db import connections

from runner.executors.base import ExecutorError

logger = logging.getLogger(__name__)

#: What finds all taken is left out: the next pass asks for it again.
MOST_AT_ONCE = 8


class Background:
    """Does each thing in a thread of its own, and no thing twice at the same time. Every verb may be repeated."""

    def __init__(self) -> None:
        self._going: set[str] = set()

    def __call__(self, what: str, verb: Callable[[], object]) -> None:
        """Begin, unless it is going on. ``what`` names it. Called by one thread only."""
        if what not in self._going and len(self._going) < MOST_AT_ONCE:
            self._going.add(what)
            threading.Thread(target=self._do, args=(what, verb), name=what, daemon=True).start()

    def _do(self, what: str, verb: Callable[[], object]) -> None:
        try:
            verb()
        except ExecutorError as error:
            logger.warning("%s: %s; trying again", what, error)
        except Exception:
            logger.exception("%s failed; trying again", what)
        finally:
            connections.close_all()
            self._going.discard(what)
