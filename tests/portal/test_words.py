"""The Chinese catalogue knows every word of the portal."""

from __future__ import annotations

import ast
import gettext
import re
from collections.abc import Iterator
from pathlib import Path

from django.conf import settings

TEMPLATES = settings.BASE_DIR / "templates"
PORTAL = settings.BASE_DIR / "platform" / "clavier" / "portal"
IN_TEMPLATES = re.compile(r"""{%\s*translate\s+(?:"([^"]+)"|'([^']+)')""")
MARKS = ("_", "gettext", "gettext_lazy")


class Unknown(gettext.NullTranslations):
    """Is asked for the words that a catalogue lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def gettext(self, message: str) -> str:
        """Keep the word."""
        self.asked.append(message)
        return message


def test_every_word_of_the_portal_is_in_the_chinese_catalogue():
    with open(TEMPLATES / "locale" / "zh_Hans" / "LC_MESSAGES" / "django.mo", "rb") as stream:
        catalogue = gettext.GNUTranslations(stream)
    words = {word for path in TEMPLATES.rglob("*.html") for word in words_of_template(path)}
    words |= {word for path in PORTAL.rglob("*.py") for word in words_of_module(path)}
    unknown = Unknown()
    catalogue.add_fallback(unknown)
    for word in words:
        catalogue.gettext(word)
    assert len(words) > 250
    assert unknown.asked == []


def words_of_template(path: Path) -> Iterator[str]:
    """What ``{% translate %}`` marks; Django asks the catalogue for ``%%`` where ``%`` stands."""
    for double, single in IN_TEMPLATES.findall(path.read_text(encoding="utf-8")):
        yield (double or single).replace("%", "%%")


def words_of_module(path: Path) -> Iterator[str]:
    """The literals that ``_()`` and ``gettext()`` are called with, in a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MARKS:
            yield ast.literal_eval(node.args[0])
