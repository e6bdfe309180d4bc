#!/usr/bin/env python3
"""The only Django entry point; works in a bare checkout because it puts both source roots on sys.path itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def main() -> None:
    """Run a management command."""
    # The root holds a folder named platform/ without __init__.py; the stdlib's module `platform` still wins over it,
    # because a regular module always beats a namespace package (tests/test_tree.py guards this).
    for source_root in (str(ROOT), str(ROOT / "platform")):
        if source_root not in sys.path:
            sys.path.insert(0, source_root)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "clavier.config.settings")
    from django.core.management import execute_from_command_line  # after sys.path and the settings are in place

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
