"""Hints from a schema: the values that a key takes, and the key that was meant. Reads JSON Schema; knows no recipe."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from launchyard.storage.redact import redact

Node = dict[str, Any]
# pydantic leaves the bounds of a union beside it, under its own names.
UNION_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
_BOUNDS = {
    "minimum": "of at least",
    "exclusiveMinimum": "above",
    "maximum": "up to",
    "exclusiveMaximum": "below",
}


@dataclass(frozen=True)
class Vocabulary:
    """Other tools' names. `moved`: their key -> ours; `advice`: their key -> the alternative."""

    moved: Mapping[str, str]
    advice: Mapping[str, str]

    def suggest(self, schema: Node, path: tuple[str | int, ...]) -> str:
        """The key that was meant by an unknown one, or the keys that are allowed at its place."""
        *parents, last = (str(part) for part in path)
        names = (".".join([*parents, last]), last)
        for name in names:
            if name in self.advice:
                return self.advice[name]
        for name in names:
            if name in self.moved:
                return f"did you mean {self.moved[name]}?"
        siblings = sorted(keys_at(schema, tuple(path[:-1])))
        if near := nearest(last, siblings):
            return f"did you mean {'.'.join([*parents, near])}?"
        leaves = list(leaf_keys(schema))
        if same := [leaf for leaf in leaves if leaf.rsplit(".", 1)[-1] == last.lower().replace("-", "_")]:
            return f"did you mean {' or '.join(same)}?"
        if near := nearest(last, [leaf.rsplit(".", 1)[-1] for leaf in leaves], cutoff=0.75):
            return f"did you mean {next(leaf for leaf in leaves if leaf.rsplit('.', 1)[-1] == near)}?"
        return f"allowed here: {', '.join(siblings)}" if siblings else "it holds no keys"


def nearest(name: str, among: list[str], *, cutoff: float = 0.6) -> str | None:
    """The closest of some names; case, and - or _, make no difference."""
    plain = {other.lower().replace("-", "_"): other for other in among}
    found = difflib.get_close_matches(name.lower().replace("-", "_"), list(plain), n=1, cutoff=cutoff)
    return plain[found[0]] if found else None


def at(schema: Node, path: tuple[str | int, ...]) -> Node | None:
    """The schema of a key, or None if there is no such key."""
    node: Node = schema
    for part in path:
        for branch in _branches(schema, node):
            if isinstance(part, str) and part in branch.get("properties", {}):
                node = branch["properties"][part]
                break
            if isinstance(part, int) and branch.get("type") == "array":
                prefix = branch.get("prefixItems")
                node = prefix[part] if prefix and part < len(prefix) else branch.get("items", {})
                break
            if isinstance(part, str) and isinstance(branch.get("additionalProperties"), dict):
                node = branch["additionalProperties"]
                break
        else:
            return None
    return node


def keys_at(schema: Node, path: tuple[str | int, ...]) -> list[str]:
    node = at(schema, path)
    return [] if node is None else [key for branch in _branches(schema, node) for key in branch.get("properties", {})]


def leaf_keys(schema: Node, node: Node | None = None, before: str = "") -> Iterator[str]:
    """Dotted names of all keys that hold no further keys."""
    for branch in _branches(schema, node or schema):
        for key, child in branch.get("properties", {}).items():
            deeper = list(leaf_keys(schema, child, f"{before}{key}."))
            yield from deeper or [f"{before}{key}"]


def allowed(schema: Node, node: Node | None) -> str:
    """The values that a key takes, as text: `a whole number of at least 1`."""
    kinds = [_kind(schema, branch) for branch in _branches(schema, node or {}) if branch.get("type") != "null"]
    return " or ".join(dict.fromkeys(kinds)) or "something else"


def choices(schema: Node, node: Node) -> list[str]:
    """The values of a key as they are typed, if it takes only a few."""
    found = list[str]()
    for branch in _branches(schema, node):
        values = ["true", "false"] if branch.get("type") == "boolean" else branch.get("enum", [branch.get("const")])
        found += [str(value) for value in values if value is not None]
    return found


def described(schema: Node, node: Node) -> str:
    """The description of a key, or of the section that it holds; empty without one."""
    found = [node, *_branches(schema, node)]
    return next((" ".join(str(one["description"]).split()) for one in found if "description" in one), "")


def shown(value: Any) -> str:
    """A wrong value as the user wrote it, short and without passwords."""
    text = redact(json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= 60 else f"{text[:57]}…"


def _branches(schema: Node, node: Node) -> list[Node]:
    if "$ref" in node:
        return _branches(schema, schema["$defs"][node["$ref"].rsplit("/", 1)[-1]])
    for key in ("anyOf", "oneOf", "allOf"):
        if key in node:
            bounds = {name: node[plain] for plain, name in UNION_BOUNDS.items() if plain in node}
            return [{**bounds, **found} for branch in node[key] for found in _branches(schema, branch)]
    return [node]


def _kind(schema: Node, node: Node) -> str:
    if "const" in node:
        return str(node["const"])
    if "enum" in node:
        return f"one of {', '.join(map(str, node['enum']))}"
    match node.get("type"):
        case "integer":
            return f"a whole number{_bounds(node)}"
        case "number":
            return f"a number{_bounds(node)}"
        case "boolean":
            return "true or false"
        case "string":
            return f"text that matches {node['pattern']}" if "pattern" in node else "text"
        case "array" if "prefixItems" in node:
            return f"a list of {len(node['prefixItems'])} values, each {allowed(schema, node['prefixItems'][0])}"
        case "array":
            return f"a list, each {allowed(schema, node.get('items', {}))}"
        case "object" if node.get("properties"):
            return f"a mapping with the keys {', '.join(node['properties'])}"
        case "object":
            return "a mapping"
    return "something else"


def _bounds(node: Node) -> str:
    return ",".join(f" {phrase} {node[name]}" for name, phrase in _BOUNDS.items() if name in node)
