"""Functions that a client has for a model to call, as OpenAI has them. Knows no model and no HTTP."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launchyard.model.text.companions import Json

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_FUNCTION_KEYS = {"name", "description", "parameters", "strict"}
_CHOICES = 'use "none", "auto", "required", or {"type": "function", "function": {"name": …}}'
_NOTHING: Json = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class Tools:
    """shown: what the template gets. schemas: of the arguments, by the function's name.

    required: an answer is a call. only: of this function. strict: names of functions whose calls fit their schemas,
    called of the model's own will or not.
    """

    shown: tuple[Json, ...]
    schemas: Mapping[str, Mapping[str, object]]
    strict: frozenset[str] = frozenset()
    required: bool = False
    only: str | None = None
    parallel: bool = True

    @classmethod
    def read(cls, tools: Sequence[object], choice: object = None, *, parallel: bool = True) -> Tools | None:
        """From the fields tools, tool_choice and parallel_tool_calls; None if nothing is to be called.

        ValueError names the field that is at fault.
        """
        functions = [_function(tool, f"tools.{place}") for place, tool in enumerate(tools)]
        names = [str(function["name"]) for function in functions]
        if twice := next((name for place, name in enumerate(names) if name in names[:place]), None):
            raise ValueError(f"tools has two functions of the name {twice!r}; calls could not be told apart")
        mode, only = _choice(choice, names)
        if mode == "none" or not functions:
            return None
        shown = tuple(_shown(function) for function in functions)
        schemas = {name: _parameters(function) for name, function in zip(names, functions, strict=True)}
        strict = frozenset(str(function["name"]) for function in functions if function.get("strict"))
        return cls(shown, schemas, strict, required=mode == "required", only=only, parallel=parallel)


# -- what a client may say ---------------------------------------------------------------------------------------------
def _function(tool: object, where: str) -> Mapping[str, object]:
    if not isinstance(tool, Mapping):
        raise ValueError(f"{where} is no object")
    if tool.get("type") != "function":
        raise ValueError(f"{where}.type is {tool.get('type')!r}; tools here are of type function alone")
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise ValueError(f"{where}.function is no object; it has a name, a description and parameters")
    if unknown := sorted(function.keys() - _FUNCTION_KEYS):
        known = ", ".join(sorted(_FUNCTION_KEYS))
        raise ValueError(f"{where}.function.{unknown[0]} is not known; it takes {known}")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{where}.function.name is {name!r}; it must be 1 to 64 letters, digits, _ or -")
    if not isinstance(function.get("description"), str | None):
        raise ValueError(f"{where}.function.description is no text")
    if not isinstance(function.get("strict"), bool | None):
        raise ValueError(f"{where}.function.strict is neither true nor false")
    parameters = function.get("parameters")
    if parameters is not None and not (
        isinstance(parameters, Mapping) and parameters.get("type", "object") == "object"
    ):
        raise ValueError(f"{where}.function.parameters is no JSON schema of an object")
    return function


def _parameters(function: Mapping[str, object]) -> Mapping[str, object]:
    given = function.get("parameters")
    return {"type": "object", **given} if isinstance(given, Mapping) else _NOTHING


def _shown(function: Mapping[str, object]) -> Json:
    """As templates take it: with parameters, which many of them write out without a look."""
    kept = {key: value for key, value in function.items() if value is not None and key != "strict"}
    nothing: Json = {"type": "object", "properties": {}}
    return {"type": "function", "function": {"parameters": nothing, **kept}}


def _choice(choice: object, names: Sequence[str]) -> tuple[str, str | None]:
    """none, auto or required, and the one function that is."""
    if choice is None:
        return "auto", None
    if isinstance(choice, str) and choice in ("none", "auto", "required"):
        if choice == "required" and not names:
            raise ValueError('tool_choice is "required", and there are no tools')
        return choice, None
    function = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise ValueError(f"tool_choice is {choice!r}; {_CHOICES}")
    if name not in names:
        raise ValueError(f"tool_choice names {name!r}; the tools are: {', '.join(names) or 'none'}")
    return "required", name
