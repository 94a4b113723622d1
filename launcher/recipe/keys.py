"""The keys of a schema as a list: name, values, default and meaning of each. Knows no recipe and prints nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from launchyard.launcher.recipe.hints import Node, allowed, at, choices, described, leaf_keys
from launchyard.storage.damage import JsonObject


@dataclass(frozen=True)
class KeyFacts:
    """One key. `values`: those that it takes, in words; `default`: as JSON holds it; None where there is none."""

    key: str
    values: str
    default: object
    required: bool
    choices: list[str]
    meaning: str

    @property
    def default_text(self) -> str:
        """The default as it would be typed after KEY=; `required` where something must be."""
        if self.required:
            return "required"
        if self.default is None:
            return "-"
        return self.default if isinstance(self.default, str) and self.default else json.dumps(self.default)

    def to_json(self) -> JsonObject:
        return asdict(self)


def list_keys(schema: Node, prefix: str = "") -> list[KeyFacts]:
    """Returns the keys of a schema that hold no further keys, in its order; those in one section, or one key.

    prefix: the dotted name of a section or of a key; empty for all.
    """
    return [_facts(schema, key) for key in leaf_keys(schema) if _is_below(key, prefix)]


def section_names(schema: Node) -> list[str]:
    """Returns the dotted names of all sections, outermost first."""
    return list(dict.fromkeys(name for key in leaf_keys(schema) for name in _above(key)))


def _above(key: str) -> Iterator[str]:
    parts = key.split(".")
    yield from (".".join(parts[:end]) for end in range(1, len(parts)))


def _is_below(key: str, prefix: str) -> bool:
    return not prefix or key == prefix or key.startswith(f"{prefix}.")


def _facts(schema: Node, key: str) -> KeyFacts:
    node = at(schema, tuple(key.split("."))) or {}
    return KeyFacts(
        key=key,
        values=allowed(schema, node),
        default=node.get("default"),
        required="default" not in node,
        choices=choices(schema, node),
        meaning=described(schema, node),
    )
