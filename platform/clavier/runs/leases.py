"""One leader per loop, decided on the database's clock; what a former leader still wants to write is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.db import IntegrityError, connection, transaction
from django.db.models import DateTimeField as DateTime
from django.db.models import ExpressionWrapper
from django.db.models.functions import Now

from clavier.core import sql
from clavier.runs.models import Lease

LONG_AGO = datetime(1970, 1, 2, tzinfo=UTC)


class LeaseLost(Exception):
    """Somebody else leads now; nothing was written."""


@dataclass(frozen=True, slots=True)
class Fence:
    """A term of leadership. Each change of the leader is a new epoch."""

    name: str
    epoch: int

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """A transaction that nobody can take the lead in the middle of. Raises LeaseLost."""
        with transaction.atomic():
            # The row lock makes a takeover wait for our commit (SQLite: the transaction is IMMEDIATE anyway).
            if not Lease.objects.select_for_update().filter(name=self.name, epoch=self.epoch).exists():
                raise LeaseLost(f"{self.name}: epoch {self.epoch} is over")
            yield

    def renew(self, *, for_s: float) -> None:
        """Keep the lead for longer, also after its end when nobody took it. Raises LeaseLost."""
        until = ExpressionWrapper(Now() + timedelta(seconds=for_s), output_field=DateTime())
        mine = Lease.objects.filter(name=self.name, epoch=self.epoch)
        if not mine.update(renewed_at=Now(), expires_at=until):
            raise LeaseLost(f"{self.name}: epoch {self.epoch} is over")


def hold(name: str, holder: str, *, for_s: float) -> Fence | None:
    """Take, keep or take over a lease; None while somebody else holds it."""
    now, until, too_late = (in_seconds(seconds) for seconds in (0, for_s, 2 * for_s))
    kept = f"CASE WHEN holder = %s AND expires_at > {now} THEN epoch ELSE epoch + 1 END"
    # Nobody asks for as long as too_late: it was written before the database's clock was set back.
    is_free = f"(holder = %s OR expires_at <= {now} OR expires_at > {too_late})"
    taken = sql.select(
        f"UPDATE runs_lease SET epoch = {kept}, holder = %s, renewed_at = {now}, expires_at = {until} "
        f"WHERE name = %s AND {is_free} RETURNING epoch",
        *(holder, holder, name, holder),
    )
    if taken:
        return Fence(name, taken[0][0])
    first = {"holder": holder, "epoch": 1, "renewed_at": Now(), "expires_at": Now() + timedelta(seconds=for_s)}
    try:
        with transaction.atomic():
            _, created = Lease.objects.get_or_create(name=name, defaults=first)
    except IntegrityError:
        return None
    return Fence(name, 1) if created else None


def in_seconds(seconds: float) -> str:
    """A moment on the database's clock, as an expression."""
    if connection.vendor == "postgresql":
        return f"(STATEMENT_TIMESTAMP() + INTERVAL '{float(seconds)} seconds')"
    return f"STRFTIME('%%Y-%%m-%%d %%H:%%M:%%f', 'NOW', '{float(seconds)} seconds')"


def give_up(name: str, holder: str) -> None:
    """Let the next one take over at once, also if the clock is set back meanwhile."""
    Lease.objects.filter(name=name, holder=holder).update(expires_at=LONG_AGO)
