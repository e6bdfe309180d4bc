"""The RQ worker of the platform: for jobs of seconds, quick to come back, and gone without a trace."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Any

from django.conf import settings
from django.utils.module_loading import import_string
from rq import Queue, Worker
from rq.job import Job

#: Jobs end within a minute, so a worker that is silent for this long is dead.
WORKER_TTL_S = 60
JOB_HEARTBEAT_S = 5
RECONNECT_AT_MOST_EVERY_S = 2.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class ShortJobWorker(Worker):
    """A forking worker with a name of its own per life, which survives a restart of Redis."""

    # RQ waits up to a minute after a lost connection, which a person at the portal would feel.
    max_connection_wait_time = RECONNECT_AT_MOST_EVERY_S

    def __init__(self, queues: list[Queue], name: str | None = None, **options: Any) -> None:
        # A worker killed with -9 stays registered for WORKER_TTL_S, and RQ refuses a second one of the same name.
        options.update(worker_ttl=WORKER_TTL_S, job_monitoring_interval=JOB_HEARTBEAT_S)
        super().__init__(queues, name=f"{name or 'worker'}.{os.getpid()}", **options)

    def work(self, *arguments: Any, **options: Any) -> bool:
        """Import what its jobs need and get ready, before any fork does it for itself."""
        for job in settings.QUEUE_JOBS:
            import_string(job)
        import_string(settings.QUEUE_GET_READY)()
        return bool(super().work(*arguments, **options))

    def main_work_horse(self, job: Job, queue: Queue) -> None:
        """In the fork: end with the worker, or a killed worker's job would run on beside its own retry."""
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        super().main_work_horse(job, queue)
