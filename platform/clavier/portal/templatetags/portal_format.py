"""Numbers with units, times, states: the only formatting that templates do."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Literal

from django import template
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timesince import timesince
from django.utils.translation import gettext

from clavier.files.archives import ENDINGS
from clavier.portal import labels

register = template.Library()

EMPTY = "–"
#: Templates hand over "" for what is not there, such as the size of no version.
Number = float | Literal[""] | None


@register.simple_tag
def badge(state: str | None) -> SafeString:
    """A state as a coloured word."""
    label = labels.state_label(state)
    return format_html('<span class="badge {}">{}</span>', label.tone, label.text)


@register.simple_tag
def state_text(state: str) -> object:
    """A state as a plain word."""
    return labels.state_label(state).text


@register.filter
def is_archive(name: str) -> bool:
    """A file of this name can be unpacked."""
    return name.lower().endswith(ENDINGS)


@register.filter
def word(value: str, table: str) -> object:
    """The word of one of the tables in ``labels``; an unknown one is shown as it is."""
    return getattr(labels, table).get(value, value)


@register.filter
def ago(moment: datetime | None) -> SafeString | str:
    """How long ago, with the exact time as title."""
    if moment is None:
        return EMPTY
    if (timezone.now() - moment).total_seconds() < 60:
        text = gettext("just now")
    else:
        text = gettext("%(time)s ago") % {"time": timesince(moment, depth=1)}
    return _time(moment, text)


@register.filter
def until(moment: datetime | None) -> SafeString | str:
    """The date of a moment, with the exact time as title."""
    return EMPTY if moment is None else _time(moment, date_format(timezone.localtime(moment), "DATE_FORMAT"))


@register.filter
def clock(moment: datetime | None) -> SafeString | str:
    """The time of day, with the exact time as title."""
    return EMPTY if moment is None else _time(moment, timezone.localtime(moment).strftime("%H:%M:%S"))


@register.filter
def mib(number: Number) -> str:
    """MiB as a size."""
    return size(number * 2**20 if isinstance(number, int | float) else number)


@register.filter
def size(number: Number) -> str:
    """Bytes in binary units: 1.5 GiB."""
    if number is None or number == "":
        return EMPTY
    amount = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(amount) < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:,.1f} TiB"


@register.filter
def percent(share: Number) -> str:
    """A share in percent, without the sign."""
    return EMPTY if share is None or share == "" else f"{100 * float(share):.1f}".removesuffix(".0")


@register.filter
def count(number: Number) -> str:
    """A number with thousands apart; below a thousand up to two places after the point."""
    if number is None or number == "":
        return EMPTY
    if isinstance(number, int) or abs(number) >= 1000:
        return f"{number:,.0f}"
    return f"{number:.2f}".rstrip("0").rstrip(".")


@register.filter
def parameters(number: Number) -> str:
    """The size of a model: 0.68 M, 7.62 B."""
    if number is None or number == "":
        return EMPTY
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"


@register.filter
def seconds(number: Number) -> str:
    """A duration: 8 s, 3 min 20 s, 2 h 5 min."""
    if number is None or number == "":
        return EMPTY
    whole = round(number)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


@register.filter
def score(number: Number) -> str:
    """A loss or score with four places; from 10 on, as BLEU has it, two are enough."""
    return EMPTY if number is None or number == "" else f"{number:.{_places(number)}f}"


@register.filter
def signed(number: Number) -> str:
    """A difference with its sign."""
    return EMPTY if number is None or number == "" else f"{number:+.{_places(number)}f}"


@register.filter
def cell(value: Any) -> str:
    """A value of a data row as one readable text."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


@register.filter
def knob_value(value: Any) -> str:
    """A hyperparameter as it is written."""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return gettext("yes") if value else gettext("no")
    return f"{value:g}" if isinstance(value, float) else str(EMPTY if value is None else value)


def _places(number: float) -> int:
    return 2 if abs(number) >= 10 else 4


def _time(moment: datetime, text: str) -> SafeString:
    exact = timezone.localtime(moment).strftime("%Y-%m-%d %H:%M:%S %Z")
    return format_html('<time datetime="{}" title="{}">{}</time>', moment.isoformat(), exact, text)
