"""The keys of a YAML training configuration, taken out one by one, and all that is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from clavier.core.errors import FieldProblem, quoted
from runner.contract.knob_values import BadValue, Knob, read_value


class ConfigKeys:
    """What a file gives under our names; what nobody takes out are hyperparameters."""

    def __init__(self, given: Mapping[str, Any], our_name: Callable[[str], str]) -> None:
        self.problems: list[FieldProblem] = []
        #: Our name -> the name in the file.
        self.written = {our_name(name): name for name in given}
        self.left = {our_name(name): value for name, value in given.items()}
        self.refuse_doubles("", given, our_name)

    def add(self, name: str, code: str, message: str) -> None:
        """One more problem."""
        self.problems.append(FieldProblem(name, code, f"{message}."))

    def contradict(self, name: str, message: str) -> None:
        """One more that says what another key denies."""
        self.add(name, "conflicting_fields", message)

    def refuse_doubles(self, prefix: str, given: Mapping[str, Any], our_name: Callable[[str], str]) -> None:
        """A mapping that says one thing under two of its names says nothing."""
        last = {our_name(name): name for name in given}
        for name in given:
            if last[our_name(name)] != name:
                message = f"{prefix}{name} is given under another name too, {last[our_name(name)]}; leave one out"
                self.contradict(prefix + name, message)

    def take_flag(self, name: str) -> bool | None:
        """None where the file does not say, or says it wrongly."""
        if name not in self.left:
            return None
        return self.as_flag(self.written[name], self.left.pop(name))

    def take_block(self, name: str, known: tuple[str, ...]) -> dict[str, Any]:
        """The known keys of a mapping, empty where it is absent or no mapping."""
        return self.known_part(name, self.left.pop(name, {}), known)

    def known_part(self, name: str, block: Any, known: tuple[str, ...]) -> dict[str, Any]:
        """The known keys of a mapping within another."""
        if not isinstance(block, dict):
            self.add(name, "wrong_type", f"{name} needs a mapping of {', '.join(known)}")
            return {}
        for key in sorted(set(block) - set(known), key=str):
            self.add(f"{name}.{key}", "unknown_field", f"{name}.{key} is none of {', '.join(known)}")
        return {key: value for key, value in block.items() if key in known}

    def is_on(self, name: str, block: Mapping[str, Any]) -> bool | None:
        """What ``enabled`` of a mapping says; None where it is absent, or says it wrongly."""
        if not block:
            return None
        if "enabled" not in block:
            self.add(f"{name}.enabled", "required", f"{name}.enabled is required: true or false")
            return None
        return self.as_flag(f"{name}.enabled", block["enabled"])

    def as_flag(self, key: str, value: Any) -> bool | None:
        """True or false, as YAML writes them without quotes."""
        if isinstance(value, bool):
            return value
        self.add(key, "wrong_type", f"{key} needs true or false, got {quoted(value)}")
        return None

    def as_whole(self, key: str, value: Any, low: int, high: int) -> int:
        """A whole number; the lowest allowed one where the file has none."""
        try:
            return int(read_value(Knob(key, "int", low, "", "", low, high), value))
        except BadValue as error:
            self.add(key, error.code, f"{key}: {error}")
            return low
