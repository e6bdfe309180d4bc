"""The RQ worker of the platform: for jobs of seconds, quick to come back, and gone without a trace (decision 0010)."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import signal
from typing import Any

from django.conf import settings
from django.db import close_old_connections, connections
from django.utils.module_loading import import_string
from rq import Queue, Worker
from rq.job import Job
from rq.timeouts import BaseTimeoutException
from rq.worker import WorkerStatus

#: Jobs end within a minute, so a worker that is silent for this long is dead.
WORKER_TTL_S = 60
JOB_HEARTBEAT_S = 5
RECONNECT_AT_MOST_EVERY_S = 2.0
#: So long after its time limit, what can not even be interrupted ends with the whole worker.
LAST_GRACE_S = 10
#: After so many a worker makes room for a new one, whatever its jobs have left in its memory.
MAX_JOBS = 5000
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class ShortJobWorker(Worker):
    """Does ``settings.QUEUE_JOBS`` itself and forks for all others; it survives a restart of Redis."""

    # RQ waits up to a minute after a lost connection, which a person at the portal would feel.
    max_connection_wait_time = RECONNECT_AT_MOST_EVERY_S

    def __init__(self, queues: list[Queue], name: str | None = None, **options: Any) -> None:
        # A worker killed with -9 stays registered for WORKER_TTL_S, and RQ refuses a second one of the same name.
        options.update(worker_ttl=WORKER_TTL_S, job_monitoring_interval=JOB_HEARTBEAT_S)
        super().__init__(queues, name=f"{name or 'worker'}.{os.getpid()}", **options)

    def work(self, *arguments: Any, **options: Any) -> bool:
        """Import what its jobs need and get ready, before any job does it for itself."""
        for job in settings.QUEUE_JOBS:
            import_string(job)
        import_string(settings.QUEUE_GET_READY)()
        gc.collect()
        gc.freeze()  # what lives as long as the worker is not looked through again and again
        options["max_jobs"] = options.get("max_jobs") or MAX_JOBS
        return bool(super().work(*arguments, **options))

    def execute_job(self, job: Job, queue: Queue) -> None:
        """In this process or in a fork, and wait for it."""
        if job.func_name in settings.QUEUE_JOBS:
            self._do(job, queue)
        else:
            connections.close_all()  # no two processes may share one
            super().execute_job(job, queue)

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """What a job was interrupted in may be half done in this process too: the next jobs get a new one."""
        kind: type[BaseException] | None = exc_info[0]
        if kind is not None and issubclass(kind, BaseTimeoutException):
            self._stop_requested = True
        super().handle_exception(job, *exc_info)

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        """Of what it does itself there is no heartbeat before the end."""
        if job.func_name in settings.QUEUE_JOBS:
            return int(job.timeout or WORKER_TTL_S) + LAST_GRACE_S + WORKER_TTL_S
        return super().get_heartbeat_ttl(job, working_time)

    def main_work_horse(self, job: Job, queue: Queue) -> None:
        """In the fork: end with the worker, or a killed worker's job would run on beside its own retry."""
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        super().main_work_horse(job, queue)

    def _do(self, job: Job, queue: Queue) -> None:
        """In this process. Who hangs where no exception reaches it is ended by a thread that needs no interpreter."""
        execution = self.prepare_execution(job)
        close_old_connections()
        faulthandler.dump_traceback_later(int(job.timeout or WORKER_TTL_S) + LAST_GRACE_S, exit=True)
        try:
            is_well = self.perform_job(job, queue, execution)
        finally:
            faulthandler.cancel_dump_traceback_later()
        if is_well:
            close_old_connections()
        else:
            connections.close_all()
        self.set_state(WorkerStatus.IDLE)
