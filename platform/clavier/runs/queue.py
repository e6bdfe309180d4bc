"""The alarm clock: tells RQ that there is something to do. The truth is in the database."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any
from uuid import UUID

import redis
from django.conf import settings
from redis.backoff import NoBackoff
from redis.retry import Retry
from rq import Queue
from rq.serializers import JSONSerializer

logger = logging.getLogger(__name__)

SCHEDULE_JOB = "runner.worker.jobs.schedule"
LAUNCH_JOB = "runner.worker.jobs.launch"


def tell(outbox_id: int) -> None:
    """Enqueue a scheduler pass; a dead queue is only logged (the reconciler sweeps the outbox)."""
    enqueue(SCHEDULE_JOB, str(outbox_id))


def enqueue_launch(attempt_id: UUID) -> bool:
    """Enqueue the start of an attempt."""
    return enqueue(LAUNCH_JOB, str(attempt_id))


def enqueue(job: str, *arguments: str) -> bool:
    """Enqueue a job by dotted name; False when the queue can not be reached."""
    try:
        fast_queue().enqueue(
            job, *arguments, job_timeout=settings.LONG_JOBS.get(job, 60), result_ttl=60, failure_ttl=3600
        )
    except (redis.RedisError, OSError) as error:
        logger.warning("queue unreachable (%s); the reconciler will do %s", error, job)
        return False
    return True


def ping() -> bool:
    """The queue answers."""
    try:
        return bool(connection().ping())
    except (redis.RedisError, OSError):
        return False


@cache
def connection() -> redis.Redis:
    """A connection that fails within a second: a web request must not wait for a queue that is down."""
    once: dict[str, Any] = {"socket_timeout": 1, "socket_connect_timeout": 1, "retry": Retry(NoBackoff(), 0)}
    if settings.REDIS_URL:
        return redis.Redis.from_url(settings.REDIS_URL, **once)
    return redis.Redis(unix_socket_path=str(settings.CLAVIER_REDIS_SOCKET), **once)


@cache
def fast_queue() -> Queue:
    """The default queue on that connection."""
    return Queue("default", connection=connection(), serializer=JSONSerializer)
