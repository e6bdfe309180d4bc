"""One leader per loop, decided on the database's clock."""

from __future__ import annotations

from datetime import timedelta

from django.db import IntegrityError, transaction
from django.db.models import DateTimeField as DateTime
from django.db.models import ExpressionWrapper, F, Q
from django.db.models.functions import Now

from clavier.runs.models import Lease


def hold(name: str, holder: str, *, for_s: float) -> bool:
    """Take, keep or take over a lease; False while somebody else holds it."""
    until = ExpressionWrapper(Now() + timedelta(seconds=for_s), output_field=DateTime())
    kept = Lease.objects.filter(name=name, holder=holder, expires_at__gt=Now())
    if kept.update(renewed_at=Now(), expires_at=until):
        return True
    free = Lease.objects.filter(Q(expires_at__lte=Now()) | Q(holder=holder), name=name)
    if free.update(holder=holder, epoch=F("epoch") + 1, renewed_at=Now(), expires_at=until):
        return True
    try:
        with transaction.atomic():
            _, created = Lease.objects.get_or_create(
                name=name, defaults={"holder": holder, "epoch": 1, "renewed_at": Now(), "expires_at": until}
            )
    except IntegrityError:
        return False
    return created


def give_up(name: str, holder: str) -> None:
    """Let the next one take over at once."""
    Lease.objects.filter(name=name, holder=holder).update(expires_at=Now())
