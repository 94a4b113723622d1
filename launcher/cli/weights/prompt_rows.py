"""Files of prompts: a JSON object a line, each with rules of its own. Knows no model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from launchyard.errors import RecipeErrors, UserError
from launchyard.launcher.cli.weights.sampling_options import SAMPLING_NAMES, checked_sampling
from launchyard.storage.files import read_text

if TYPE_CHECKING:
    from launchyard.model.loaded import SamplingOptions


class PromptRow(BaseModel):
    """What a line may hold; what it leaves out is as on the command line."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str
    id: str | int | None = None
    max_new_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    penalty_window: int | None = None


@dataclass(frozen=True)
class PlacedRow:
    """A row, the place that its errors name, its fields as they stand there, and how its tokens are drawn."""

    where: str
    row: PromptRow
    fields: Mapping[str, object]
    sampling: SamplingOptions


def read_prompt_rows(path: str, defaults: Mapping[str, object]) -> list[PlacedRow]:
    """All rows of a file, or of standard input if it is `-`; RecipeErrors names all lines that are wrong at once.

    defaults: the rules of drawing that a row does not name.
    """
    rows = []
    problems = []
    for where, line in _lines(path):
        try:
            rows.append(_row(where, line, defaults))
        except ValidationError as error:
            problems += [f"{where}: {_said(dict(one))}" for one in error.errors()]
        except ValueError as error:
            problems.append(f"{where}: {error}")
    if problems:
        raise RecipeErrors(problems)
    if not rows:
        raise UserError(f'--prompts {path} holds no prompt; write one a line, as {{"prompt": "Once upon a time"}}')
    return rows


def standard_input() -> str:
    """All of it, without a byte order mark. UserError if it is not UTF-8."""
    try:
        text = sys.stdin.read()
        text.encode()  # in a plain locale Python reads other bytes as halves of surrogate pairs
    except UnicodeError as error:
        raise UserError("standard input is not UTF-8") from error
    return text.removeprefix("\ufeff")


def _lines(path: str) -> Iterator[tuple[str, str]]:
    """file:line and what it says; an empty line is none."""
    name = "standard input" if path == "-" else path
    text = standard_input() if path == "-" else read_text(path)
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{name}:{number}", line


def _row(where: str, line: str, defaults: Mapping[str, object]) -> PlacedRow:
    from launchyard.model.text.tokenizer import refuse_halves

    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error.msg} at character {error.pos + 1}") from error
    if not isinstance(fields, dict):
        raise ValueError('a line is an object, as {"prompt": "Once upon a time"}')
    for value in fields.values():
        refuse_halves(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    row = PromptRow.model_validate(fields)
    own = {name: value for name in SAMPLING_NAMES if (value := getattr(row, name)) is not None}
    return PlacedRow(where, row, fields, checked_sampling({**defaults, **own}))


def _said(error: Mapping[str, object]) -> str:
    place = error["loc"]
    key = str(place[0]) if isinstance(place, tuple) and place else ""
    if error["type"] == "extra_forbidden":
        return f"{key!r} is no field of a prompt; there are {', '.join(PromptRow.model_fields)}"
    if error["type"] == "missing":
        return f"{key} is missing"
    return f"{key} is {json.dumps(error['input'])}: {str(error['msg'])[:1].lower()}{str(error['msg'])[1:]}"
