"""One leader per loop, decided on the database's clock; what a former leader still wants to write is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.db import IntegrityError, transaction
from django.db.models import Case, ExpressionWrapper, F, Q, When
from django.db.models import DateTimeField as DateTime
from django.db.models.functions import Now

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
    length = timedelta(seconds=for_s)
    until = ExpressionWrapper(Now() + length, output_field=DateTime())
    is_kept = Q(holder=holder, expires_at__gt=Now())
    # Nobody asks for that long: it was written before the database's clock was set back.
    is_of_another_clock = Q(expires_at__gt=ExpressionWrapper(Now() + 2 * length, output_field=DateTime()))
    free = Lease.objects.filter(Q(holder=holder) | Q(expires_at__lte=Now()) | is_of_another_clock, name=name)
    epoch = Case(When(is_kept, then=F("epoch")), default=F("epoch") + 1)
    if free.update(holder=holder, epoch=epoch, renewed_at=Now(), expires_at=until):
        return fence_of(name, holder)
    try:
        with transaction.atomic():
            _, created = Lease.objects.get_or_create(
                name=name, defaults={"holder": holder, "epoch": 1, "renewed_at": Now(), "expires_at": until}
            )
    except IntegrityError:
        return None
    return Fence(name, 1) if created else None


def fence_of(name: str, holder: str) -> Fence | None:
    """The holder's present term."""
    epoch = Lease.objects.filter(name=name, holder=holder).values_list("epoch", flat=True).first()
    return None if epoch is None else Fence(name, epoch)


def give_up(name: str, holder: str) -> None:
    """Let the next one take over at once, also if the clock is set back meanwhile."""
    Lease.objects.filter(name=name, holder=holder).update(expires_at=LONG_AGO)
