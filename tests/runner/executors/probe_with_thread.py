"""Imports of which one starts a thread."""

from __future__ import annotations

import threading


def preload() -> None:
    """Leave a thread behind."""
    threading.Thread(target=threading.Event().wait, daemon=True).start()
