"""How engines call the platform's images."""

from __future__ import annotations


def engine_tag(image_id: str) -> str:
    """The one tag of an image (``sha256:...``) in an engine: its id, so that no archive can take another's tag over."""
    return f"clavier/image:{image_id.removeprefix('sha256:')}"
