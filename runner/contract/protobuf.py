"""Reads protobuf messages as fields and values, without their descriptions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def fields_of(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of a protobuf message: whole numbers, or bytes. Raises ValueError, IndexError."""
    place = 0
    while place < len(data):
        key, place = varint(data, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, place = varint(data, place)
            yield number, value - (1 << 64) if value >> 63 else value
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"byte {place}: wire type {wire}")
        size, place = varint(data, place) if wire == 2 else ({1: 8, 5: 4}[wire], place)
        if place + size > len(data):
            raise ValueError("it ends early")
        yield number, data[place : place + size]
        place += size


def varint(data: bytes, place: int) -> tuple[int, int]:
    """A whole number of seven bits a byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError(f"byte {place}: a number of more than ten bytes")
