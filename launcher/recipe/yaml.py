"""Strict YAML: text -> mapping with the line of every key -> frozen schema, with every problem found at once.

Shared by recipes and clusters; knows neither of them. Nothing but plain data can come out of a file: no tags, no
dates, no base-60 numbers (YAML 1.1 reads 12:00:00 as 43200), and 1e-3 is a number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from launchyard.errors import RecipeErrors
from launchyard.launcher.recipe.hints import Node, Vocabulary, allowed, at, choices, nearest, shown

KeyPath = tuple[str | int, ...]
Schema = TypeVar("Schema", bound=BaseModel)
MAX_BYTES = 1_000_000
_MAX_NODES = 20_000
_MAX_DEPTH = 24
_INT = re.compile(r"[-+]?\d+(_\d+)*|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.\d+|\d+(_\d+)*(\.\d*)?)([eE][-+]?\d+)?")
_NULL = {"", "~", "null", "Null", "NULL"}
_TRUE = {"true", "True", "TRUE"}
_FALSE = {"false", "False", "FALSE"}


class Origin(NamedTuple):
    """The place of a value: a file and its line, or the command line (then line is 0)."""

    label: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.label}:{self.line}" if self.line else self.label


@dataclass(frozen=True)
class Document:
    """A mapping and the place of each of its keys."""

    value: dict[str, Any]
    label: str
    origins: dict[KeyPath, Origin] = field(default_factory=dict)

    def origin(self, path: KeyPath) -> Origin:
        """The place of a key, or of the nearest mapping around it."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.origins:
                return self.origins[path[:end]]
        return Origin(self.label, 1 if self.origins else 0)


class _Loader(yaml.SafeLoader):
    """Composes nodes only; every plain scalar stays text and is read by `_scalar`."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (pyyaml's own class attribute)


def read_document(raw: bytes | str, label: str) -> Document:
    """Parse one YAML mapping; RecipeErrors with file, line and column if it cannot be."""
    value, origins = _read(raw, label)
    if not isinstance(value, dict):
        raise RecipeErrors([f"{label}:1: must be a mapping of keys (`key: value` lines)"])
    return Document(value, label, origins)


def read_list(raw: bytes | str, label: str) -> list[object]:
    """Parse one YAML list, as strictly."""
    value, _ = _read(raw, label)
    if not isinstance(value, list):
        raise RecipeErrors([f"{label}:1: must be a list (`- key: value` lines)"])
    return value


def _read(raw: bytes | str, label: str) -> tuple[object, dict[KeyPath, Origin]]:
    try:
        text = raw.decode() if isinstance(raw, bytes) else raw
        node = yaml.compose(text, Loader=_Loader)
    except UnicodeDecodeError as error:
        raise RecipeErrors([f"{label}: not UTF-8 text (byte {error.start})"]) from error
    except yaml.YAMLError as error:
        raise RecipeErrors([_syntax(error, label)]) from error
    except RecursionError as error:
        raise RecipeErrors([f"{label}: nested too deeply"]) from error
    if node is None:
        raise RecipeErrors([f"{label}: the file is empty; it must hold a mapping of keys"])
    walk = _Walk(label)
    value = walk.value(node, ())
    if walk.problems:
        raise RecipeErrors(walk.problems)
    return value, walk.origins


def parse_value(text: str) -> Any:
    """The value of KEY=VALUE: YAML, or plain text if it is not YAML (`*.txt`). Duplicate keys are errors."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError):
        return text
    if node is None:
        return None
    walk = _Walk("KEY=VALUE on the command line")
    value = walk.value(node, ())
    if walk.problems:
        raise RecipeErrors(walk.problems)
    return value


def validate(schema: type[Schema], document: Document, vocabulary: Vocabulary) -> Schema:
    """The mapping as a frozen value; RecipeErrors names every wrong key, its place and the allowed values."""
    try:
        return schema.model_validate_json(json.dumps(document.value), strict=True)
    except ValidationError as error:
        problems = sorted(_problems(error, schema.model_json_schema(), document, vocabulary))
        raise RecipeErrors([f"{origin}: {text}" for origin, text in problems]) from error


def _problems(
    error: ValidationError, schema: dict[str, Any], document: Document, vocabulary: Vocabulary
) -> Iterator[tuple[Origin, str]]:
    found: dict[KeyPath, str] = {}
    for item in error.errors(include_url=False):
        kind = item["type"]
        path = real_path(schema, item["loc"], keep_last=kind == "extra_forbidden")
        if kind == "missing" and isinstance(path[-1], int):  # a list that is too short
            kind = "too_short"
            path = path[:-1]
        key = dotted(path)
        if kind == "extra_forbidden":
            found[path] = f"{key}: unknown key; {vocabulary.suggest(schema, path)}"
        elif kind == "missing":
            found[path] = f"{key}: missing; it must be {allowed(schema, at(schema, path))}"
        elif kind == "value_error":
            found[path] = f"{key}: {item['msg'].removeprefix('Value error, ')}"
        else:
            got = shown(item["input"] if path == item["loc"] else at_value(document.value, path))
            tip = "; put it in quotes" if kind == "string_type" and isinstance(item["input"], int | float) else ""
            tip += _meant(schema, path, item["input"])
            found[path] = f"{key}: must be {allowed(schema, at(schema, path))}; got {got}{tip}"
    for path, text in found.items():
        if not any(len(other) > len(path) and other[: len(path)] == path for other in found):
            yield document.origin(path), text


def _meant(schema: Node, path: KeyPath, value: object) -> str:
    """The one of a few values that a wrong one comes near to."""
    node = at(schema, path)
    near = nearest(value, choices(schema, node)) if isinstance(value, str) and node is not None else None
    return f"; did you mean {near}?" if near else ""


def real_path(schema: dict[str, Any], loc: tuple[str | int, ...], *, keep_last: bool) -> KeyPath:
    """A pydantic location without the names of union branches; `keep_last` keeps an unknown last key."""
    path: KeyPath = ()
    for index, part in enumerate(loc):
        if at(schema, (*path, part)) is not None or (keep_last and index == len(loc) - 1):
            path = (*path, part)
    return path


def at_value(value: Any, path: KeyPath) -> Any:
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def dotted(path: KeyPath) -> str:
    return ".".join(str(part) for part in path)


def merge(base: Document, over: Document) -> Document:
    """`over` on top of `base`: mappings key by key, everything else (lists too) as a whole."""

    def join(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
        result = dict(low)
        for key, value in high.items():
            below = result.get(key)
            result[key] = join(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
        return result

    return Document(join(base.value, over.value), over.label, {**base.origins, **over.origins})


class _Walk:
    """Nodes -> plain values, collecting problems and the line of every key."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.problems = list[str]()
        self.origins = dict[KeyPath, Origin]()
        self._nodes = 0

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self._nodes += 1
        if len(path) > _MAX_DEPTH or self._nodes > _MAX_NODES:  # aliases can make a few lines endless
            if self._nodes < 10 * _MAX_NODES:
                self._nodes = 10 * _MAX_NODES
                self._problem(node, path[:2], "too deep or too large (do its aliases refer to themselves?)")
            return None
        if node.tag.removeprefix("tag:yaml.org,2002:") not in ("map", "seq", "str", "int", "float", "bool", "null"):
            self._problem(node, path, f"the tag {node.tag} is not supported; write plain YAML")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return node.value if node.style in ("'", '"', "|", ">") else _scalar(node.value)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or not isinstance(key, str):
                self._problem(key_node, path, "a key must be plain text")
                continue
            here = (*path, key)
            if key == "<<":
                self._problem(key_node, path, "merge keys (<<) are not supported; use `extends` or write the keys out")
            elif key in result:
                self._problem(key_node, here, f"written twice; first in line {self.origins[here].line}")
            else:
                self.origins[here] = Origin(self.label, key_node.start_mark.line + 1)
                result[key] = self.value(value_node, here)
        return result

    def _problem(self, node: yaml.Node, path: KeyPath, what: str) -> None:
        key = f"{dotted(path)}: " if path else ""
        self.problems.append(f"{Origin(self.label, node.start_mark.line + 1)}: {key}{what}")


def _scalar(text: str) -> Any:
    """YAML 1.2's core schema. An integral number with an exponent (3e8) is whole; inf and nan stay text."""
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if _INT.fullmatch(text):
        return int(text, 16) if text.startswith("0x") else int(text)
    if _FLOAT.fullmatch(text):
        number = float(text)
        if abs(number) == float("inf"):
            return text
        is_whole = "e" in text.lower() and number.is_integer() and abs(number) < 2**63
        return int(number) if is_whole else number
    return text


def _syntax(error: yaml.YAMLError, label: str) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
    where = f"{label}:{mark.line + 1}:{mark.column + 1}" if mark else label
    tip = "; indent with spaces, not tabs" if "\\t" in str(what) else ""
    context = getattr(error, "context", None)
    return f"{where}: not readable as YAML: {f'{context}: ' if context else ''}{what}{tip}"
