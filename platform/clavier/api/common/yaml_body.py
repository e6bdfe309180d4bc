"""Request bodies that are one YAML training configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Any

from rest_framework.parsers import BaseParser

from clavier.core.errors import Invalid, TooLarge
from clavier.core.yaml_text import MAX_YAML_BYTES

YAML_TYPE = "application/yaml"


class YamlParser(BaseParser):
    """The text of the body as the field ``config``; it is read where it is used. Raises TooLarge, Invalid."""

    media_type = YAML_TYPE

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> Any:
        """``{"config": text}``."""
        data = stream.read(MAX_YAML_BYTES + 1)
        if len(data) > MAX_YAML_BYTES:
            raise TooLarge(f"The body is larger than {MAX_YAML_BYTES:,} bytes.", code="too_long", field="config")
        try:
            return {"config": data.decode("utf-8-sig")}
        except UnicodeDecodeError as fault:
            message = f"The body is not UTF-8: byte {fault.start + 1}."
            raise Invalid(message, code="bad_encoding", field="config") from fault
