"""Answers that are calls, or may hold some, as a Lark grammar by the form in which a template has calls written.

Knows no model and no HTTP.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from launchyard.model.serve.constrained import grammar_of, schema_rule
from launchyard.model.serve.tools.asked import Tools
from launchyard.model.serve.tools.forms import (
    GLM,
    HERMES,
    LLAMA,
    MISTRAL,
    MISTRAL_ARGS,
    MISTRAL_IDS,
    QWEN_CODER,
    ToolSyntax,
)
from launchyard.model.serve.tools.values import DEFINITIONS, ArgumentSchema, kinds_of, referred

# Keywords that say nothing of a value.
_NOTES = {"title", "description", "default", "examples", "deprecated", "$comment"}
# Of arguments that are held to their schema parameter by parameter.
_OBJECT_KEYS = {"type", "properties", "required", "additionalProperties", "$schema", "$id", *DEFINITIONS, *_NOTES}
_ANY_KEY = r"/[^<>\s]+/"
_TEXT_LENGTHS = ("minLength", "maxLength")


@dataclass(frozen=True)
class CallGrammar:
    """marker: how a grammar has the text of a mark, which may be a special token, as `is_special` says."""

    tools: Tools
    syntax: ToolSyntax
    marker: Callable[[str], str]
    is_special: Callable[[str], bool]

    def answer(self, response_format: Mapping[str, object] | None) -> str | None:
        """Of a whole answer; None if it may be any. ValueError for what cannot be honoured."""
        form = None if response_format is None else grammar_of(response_format)
        if self.tools.required:
            return "\n".join(["start: calls", *self._call_rules()])
        if form is None:
            return "\n".join([self._free_answer(), *self._call_rules()]) if self.tools.strict else None
        if response_format is not None and response_format.get("type") == "grammar":
            raise ValueError("a response_format of type grammar cannot be had together with tools; leave one out")
        return "\n".join(["start: calls | other", f"other: {form.removeprefix('start: ')}", *self._call_rules()])

    @property
    def one_alone(self) -> bool:
        """True if an answer has one call."""
        return not self.tools.parallel or self.tools.only is not None or self.syntax.alone

    # -- around calls --------------------------------------------------------------------------------------------------
    def _free_answer(self) -> str:
        """The first rules for an answer of any text, in which what begins as a call is one."""
        if self.syntax == LLAMA:
            return "start: TEXT | calls\nTEXT: /\\s*([^\\s{](?s:.*))?/"
        opening = self.syntax.opening
        if self.is_special(opening):
            return f"start: TEXT ({self.marker(opening)} {self._behind_marker()} TEXT)*\nTEXT: /(?s:.*)/"
        head = f"head[lazy]: /(?s:.*){re.escape(opening)}/"  # goes on to the first marker, and no further
        return f"start: (head {self._behind_marker()})* TEXT\n{head}\nTEXT: /(?s:.*)/"

    def _call_rules(self) -> list[str]:
        """Rules for `calls`."""
        names = [self.tools.only] if self.tools.only is not None else list(self.tools.schemas)
        rules = [f"calls: {self._calls()}", f"one: {' | '.join(f'one_{place}' for place in range(len(names)))}"]
        for place, name in enumerate(names):
            rules += self._rules_of(name, f"one_{place}")
        return rules

    def _calls(self) -> str:
        """The right side of the rule for an answer that is calls, of `one` each."""
        if self.syntax == LLAMA:
            return "one"
        call = f"{self.marker(self.syntax.opening)} {self._behind_marker()}"
        if self.one_alone or self.syntax == MISTRAL:  # which has them in one list
            return call
        between = '"\\n"? ' if self.syntax.closing else ""
        return f"{call} ({between}{call})*"

    def _behind_marker(self) -> str:
        closing = self.marker(self.syntax.closing) if self.syntax.closing else ""
        if self.syntax == MISTRAL:
            more = "" if self.one_alone else '(", " one)*'
            return f'" "? "[" one {more} "]"'
        if self.syntax in (HERMES, QWEN_CODER):
            return f'"\\n" one "\\n" {closing}'
        return f"one {closing}"

    # -- one call ------------------------------------------------------------------------------------------------------
    def _rules_of(self, name: str, rule: str) -> list[str]:
        is_held = self.tools.required or name in self.tools.strict
        schema = self.tools.schemas[name] if is_held else {"type": "object"}
        if self.syntax in (QWEN_CODER, GLM):
            return list(_Tags(self, name, rule).rules(schema if is_held else None))
        arguments = {**schema, "$id": f"urn:function:{name}"}  # so that it may refer to itself
        if self.syntax in (MISTRAL_ARGS, MISTRAL_IDS):
            number = f"{self.marker('[CALL_ID]')} /[a-zA-Z0-9]{{9}}/ " if self.syntax == MISTRAL_IDS else ""
            head = f"{rule}: {json.dumps(name)} {number}{self.marker('[ARGS]')} {rule}_arguments"
            return [head, f"{rule}_arguments: {schema_rule(arguments, f'a call of {name}')}"]
        whole = {
            "type": "object",
            "properties": {"name": {"const": name}, self.syntax.arguments: arguments},
            "required": ["name", self.syntax.arguments],
            "additionalProperties": False,
        }
        return [f"{rule}: {schema_rule(whole, f'a call of {name}')}"]


class _Tags:
    """Rules for one call whose arguments stand one by one between tags."""

    def __init__(self, grammar: CallGrammar, name: str, rule: str) -> None:
        self._grammar = grammar
        self._name = name
        self._rule = rule
        self._is_coder = grammar.syntax == QWEN_CODER
        self._end = "</parameter>" if self._is_coder else "</arg_value>"

    def rules(self, schema: ArgumentSchema | None) -> Iterator[str]:
        """schema: that the arguments are held to; None: they may be any."""
        if schema is None:
            yield f"{self._rule}: {self._around(f'{self._rule}_any*')}"
            yield f"{self._rule}_any: {self._parameter(_ANY_KEY, f'{self._rule}_text')}"
            yield from self._text_rules(f"{self._rule}_text", 0, None)
            return
        parts = []
        for place, (key, one, needed) in enumerate(_properties(schema, f"a call of {self._name}")):
            rule = f"{self._rule}_{place}"
            parts.append(rule if needed else f"{rule}?")
            yield f"{rule}: {self._parameter(json.dumps(key), f'{rule}_value')}"
            yield from self._value_rules(f"{rule}_value", one, schema, f"a call of {self._name}: {key}")
        yield f"{self._rule}: {self._around(' '.join(parts))}"

    def _around(self, parameters: str) -> str:
        if self._is_coder:
            opening = json.dumps(f"<function={self._name}>\n")
            return f'{opening} {parameters} "</function>"'
        return f'{json.dumps(self._name)} "\\n"? {parameters}'

    def _parameter(self, key: str, value: str) -> str:
        """value: a rule that has the end of the value in it."""
        if self._is_coder:
            return f'"<parameter=" {key} ">\\n" {value} "\\n"'
        before, behind, opening = map(self._grammar.marker, ("<arg_key>", "</arg_key>", "<arg_value>"))
        return f'{before} {key} {behind} "\\n"? {opening} {value} "\\n"?'

    # -- values --------------------------------------------------------------------------------------------------------
    def _value_rules(self, rule: str, schema: object, root: ArgumentSchema, where: str) -> Iterator[str]:
        kinds = kinds_of(schema, root)
        if kinds is not None and "string" not in kinds:
            yield f"{rule}: {rule}_json {self._ending()}"
            yield f"{rule}_json: {self._json(schema, root, where)}"
        elif (listed := _listed(schema, root)) is not None:
            yield f"{rule}: ({' | '.join(self._written(value, where) for value in listed)}) {self._ending()}"
        else:
            yield from self._text_rules(rule, *_lengths(schema, root, where))

    def _json(self, schema: object, root: ArgumentSchema, where: str) -> str:
        if not isinstance(schema, Mapping):
            return schema_rule(schema, where)
        if strange := [place for place in _references(schema) if referred(place, root) is None]:
            raise ValueError(f"{where} cannot be honoured: $ref {strange[0]!r} is none of $defs")
        return schema_rule({**schema, **{key: root[key] for key in DEFINITIONS if key in root}}, where)

    def _written(self, value: object, where: str) -> str:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if self._end in text:
            raise ValueError(f"{where} cannot be honoured: {text!r} holds {self._end}, which ends it")
        return json.dumps(text, ensure_ascii=False)

    def _ending(self) -> str:
        return json.dumps(f"\n{self._end}") if self._is_coder else self._grammar.marker(self._end)

    def _text_rules(self, rule: str, least: int, most: int | None) -> Iterator[str]:
        """Any text of a length, up to the first end."""
        count = "*" if (least, most) == (0, None) else f"{{{least},{'' if most is None else most}}}"
        if not self._is_coder and self._grammar.is_special(self._end):
            yield f"{rule}: /(?s:.{count})/ {self._ending()}"
            return
        end = re.escape(self._end).replace("/", "\\/")
        line = "\\n" if self._is_coder else ""
        yield f"{rule}: {rule.upper()}"
        yield f"{rule.upper()}: /(?s:.{count}){line}{end}/ & ~/(?s:.*){end}(?s:.+)/"


def _properties(schema: ArgumentSchema, where: str) -> Iterator[tuple[str, object, bool]]:
    """Names, schemas, and whether they must be there. ValueError if the schema says more than that."""
    if unknown := sorted(schema.keys() - _OBJECT_KEYS):
        raise ValueError(f"{where} cannot be honoured: {unknown[0]}, where arguments stand one by one")
    properties = schema.get("properties")
    listed: Mapping[str, object] = properties if isinstance(properties, Mapping) else {}
    required = schema.get("required")
    needed: Sequence[object] = required if isinstance(required, list) else []
    if missing := [key for key in needed if key not in listed]:
        raise ValueError(f"{where} cannot be honoured: required names {missing[0]!r}, which is none of properties")
    for key, one in listed.items():
        if re.search(r"[<>\s]", key):
            raise ValueError(f"{where} cannot be honoured: the name {key!r} cannot stand in a tag")
        yield key, one, key in needed


def _resolved(schema: object, root: ArgumentSchema) -> object:
    for _ in range(32):
        if not isinstance(schema, Mapping) or "$ref" not in schema:
            return schema
        schema = referred(schema["$ref"], root)
    return schema


def _references(schema: object) -> Iterator[object]:
    if isinstance(schema, Mapping):
        for key, value in schema.items():
            if key == "$ref":
                yield value
            elif key not in ("const", "enum", "default", "examples"):
                yield from _references(value)
    elif isinstance(schema, list):
        for part in schema:
            yield from _references(part)


def _listed(schema: object, root: ArgumentSchema) -> list[object] | None:
    """All values that there are, if they are listed."""
    found = _resolved(schema, root)
    if not isinstance(found, Mapping):
        return None
    if "const" in found:
        return [found["const"]]
    values = found.get("enum")
    return values if isinstance(values, list) else None


def _lengths(schema: object, root: ArgumentSchema, where: str) -> tuple[int, int | None]:
    """Of a text that is held to nothing else. ValueError for keywords that no text here can be held to."""
    found = _resolved(schema, root)
    if not isinstance(found, Mapping):
        return 0, None
    parts = next((found[key] for key in ("anyOf", "oneOf") if isinstance(found.get(key), list)), None)
    if isinstance(parts, list):
        plain = [_lengths(part, root, where) for part in parts]
        if set(plain) != {(0, None)} or found.keys() & {"type"}:
            raise ValueError(f"{where} cannot be honoured: a text of one length or another kind of value")
        return 0, None
    known = {"type", *_NOTES, *(_TEXT_LENGTHS if kinds_of(found, root) == frozenset({"string"}) else ())}
    if unknown := sorted(found.keys() - known):
        raise ValueError(f"{where} cannot be honoured: {unknown[0]}, where a text stands without quotes")
    least, most = (found.get(key) for key in _TEXT_LENGTHS)
    return least if isinstance(least, int) else 0, most if isinstance(most, int) else None
