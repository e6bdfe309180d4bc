"""Parts that answers of several nouns share."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers


class Reference(serializers.Serializer[Any]):
    """Another object, by id and by the name that people know it by."""

    id = serializers.UUIDField(help_text="Its id.")
    name = serializers.SerializerMethodField(help_text="Its name; of a version with its number.")

    def get_name(self, found: Any) -> str:
        """What the object calls itself."""
        return str(found)


class Owned(serializers.Serializer[Any]):
    """What every object of a tenant says of itself."""

    id = serializers.UUIDField(help_text="Its id.")
    created_by = serializers.CharField(source="created_by.username", help_text="Who created it: the user's name.")
    created_at = serializers.DateTimeField()
    updated_at = serializers.DateTimeField()
