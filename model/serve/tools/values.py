"""Arguments as forms of tags write them: texts as they are, all else as JSON; which of them it is, the schema says.

Knows no form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NoReturn

ArgumentSchema = Mapping[str, object]

DEFINITIONS = ("$defs", "definitions")
_MOST_REFERENCES = 32  # one behind the other; a schema may refer to itself
_PYTHON = {"True": True, "False": False, "None": None}  # as templates write them that leave JSON out
_NO_JSON = object()


def argument_of(raw: str, schema: object, root: ArgumentSchema) -> object:
    """The value of a parameter. What fits no kind that the schema allows stays the text that it is.

    root: the schema in which references of `schema` are looked up.
    """
    kinds = kinds_of(schema, root)
    value = _json_value(raw.strip())
    if kinds is None:
        return raw if value is _NO_JSON or isinstance(value, str) else value
    if "string" not in kinds:
        value = _PYTHON.get(raw.strip(), value) if value is _NO_JSON else value
        return raw if value is _NO_JSON else value
    return raw if value is _NO_JSON or not (_kinds(value) & kinds - {"string"}) else value


def json_object(raw: str) -> Mapping[str, object]:
    """ValueError for what is none, or has a number that JSON has not."""
    found = json.loads(raw, strict=False, parse_constant=_no_number)
    if not isinstance(found, dict):
        raise ValueError("arguments are an object")
    return found


def arguments_text(arguments: Mapping[str, object]) -> str:
    """ValueError for numbers that JSON has not, and for half a character of UTF-16."""
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    text.encode()
    return text


def kinds_of(schema: object, root: ArgumentSchema, *, most: int = _MOST_REFERENCES) -> frozenset[str] | None:
    """Names of the types that JSON of the schema may have; None if that is not told, so that it may be any."""
    if not isinstance(schema, Mapping) or not most:
        return None
    if (place := schema.get("$ref")) is not None:
        return kinds_of(referred(place, root), root, most=most - 1)
    if "const" in schema:
        return _kinds(schema["const"])
    if isinstance(values := schema.get("enum"), list):
        return frozenset().union(*map(_kinds, values))
    kind = schema.get("type")
    if isinstance(kind, str):
        return frozenset({kind})
    if isinstance(kind, list):
        return frozenset(map(str, kind))
    for key in ("anyOf", "oneOf"):
        if isinstance(parts := schema.get(key), list):
            return _joined([kinds_of(part, root, most=most - 1) for part in parts])
    return None


def referred(place: object, root: ArgumentSchema) -> object:
    """The schema that a reference means; None if there is none, or it is not one of the root's definitions."""
    parts = str(place).split("/")
    if len(parts) != 3 or parts[0] != "#" or parts[1] not in DEFINITIONS:
        return None
    found = root.get(parts[1])
    return found.get(parts[2]) if isinstance(found, Mapping) else None


def _joined(parts: Sequence[frozenset[str] | None]) -> frozenset[str] | None:
    known = [part for part in parts if part is not None]
    return frozenset().union(*known) if len(known) == len(parts) else None


def _kinds(value: object) -> frozenset[str]:
    if isinstance(value, bool):
        return frozenset({"boolean"})
    if isinstance(value, int | float):
        return frozenset({"number", "integer"} if float(value).is_integer() else {"number"})
    names: dict[type, str] = {str: "string", list: "array", dict: "object"}
    return frozenset({names.get(type(value), "null")})


def _json_value(raw: str) -> object:
    try:
        return json.loads(raw, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return _NO_JSON


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
