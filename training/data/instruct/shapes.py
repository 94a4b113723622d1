"""From records to conversations: every usual shape of instruction data, told by its keys. Light; knows no tokens.

A null key counts as absent. Faulty rows are all named at once, with their file, line and reason, and none is left out.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from launchyard.storage.damage import JsonObject
from launchyard.training.data.instruct.carriers import FaultyRowError, Record, Split, find_files, read_records
from launchyard.training.data.instruct.conversation import Conversation, Pair, Role, Turn

SHOWN_FAULTS = 10
ROLES: dict[str, Role] = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant",
    "bard": "assistant", "bing": "assistant", "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "observation": "tool", "function_response": "tool", "tool_response": "tool", "ipython": "tool",
    "function": "tool",
}  # fmt: skip
_CALLS = ("function_call", "tool_call")  # roles whose content is a call in JSON
# Question and answer by the pairs of keys that are in use; the third is what a question is about.
ASKED = (
    ("instruction", "output", "input"),
    ("instruction", "response", "context"),
    ("instruction", "response", "input"),
    ("prompt", "completion", "input"),
    ("prompt", "response", "input"),
    ("question", "answer", "context"),
    ("question", "response", "context"),
    ("query", "response", "context"),
    ("query", "answer", "context"),
    ("input", "output", "context"),
    ("inputs", "targets", "context"),
)
# The names that `columns` maps from.
COLUMN_NAMES = (
    "messages", "conversations", "prompt", "completion", "instruction", "input", "output", "system", "tools", "text",
    "chosen", "rejected",
)  # fmt: skip
Columns = Mapping[str, str]
Made = TypeVar("Made")


def read_conversations(
    sources: Sequence[str], *, columns: Columns | None = None, split: Split = "train"
) -> Iterator[Conversation]:
    """The conversations of files, folders, globs and URLs, in order.

    columns: our name of a key -> theirs, such as {"prompt": "frage", "completion": "antwort"}. ValueError at the end
    names the faulty rows; of a file that is damaged, at once.
    """
    yield from _read(sources, lambda record: conversation_of(record, columns), split, columns)


def read_pairs(sources: Sequence[str], *, columns: Columns | None = None, split: Split = "train") -> Iterator[Pair]:
    """The same for preference data: rows with `chosen` and `rejected`."""
    yield from _read(sources, lambda record: pair_of(record, columns), split, columns)


def _read(
    sources: Sequence[str], make: Callable[[Record], Made], split: Split, columns: Columns | None
) -> Iterator[Made]:
    check_names(columns)
    faults: list[str] = []
    reasons: set[str] = set()
    n_faults = 0
    seen = 0
    for path in find_files(sources, split):
        for record in read_records(path):
            seen += 1
            try:
                if isinstance(record, FaultyRowError):
                    raise record
                made = make(record)
            except (ValueError, TypeError, RecursionError) as error:
                n_faults += 1
                text = str(error)
                if len(reasons) < 2:
                    reasons.add(text)
                if len(faults) < SHOWN_FAULTS:
                    faults.append(text if isinstance(record, FaultyRowError) else f"{record.where}: {text}")
                continue
            if not n_faults:  # what follows a fault is read for its own faults alone
                yield made
    if n_faults == seen > 1 and len(reasons) == 1:
        raise ValueError(f"all {seen} rows are faulty alike; the first: {faults[0]}")
    if n_faults:
        more = f"\n… and {n_faults - len(faults)} more" if n_faults > len(faults) else ""
        raise ValueError(f"{n_faults} of {seen} rows are faulty:\n" + "\n".join(faults) + more)


def check_names(columns: Columns | None) -> None:
    """ValueError for a name that is none of ours."""
    for ours in columns or {}:
        if ours not in COLUMN_NAMES:
            raise ValueError(f"data.columns: {ours} is none of {', '.join(COLUMN_NAMES)}")


# -- one row ---------------------------------------------------------------------------------------------------------
def conversation_of(record: Record, columns: Columns | None = None) -> Conversation:
    """ValueError says what is missing, or of another kind than it must be."""
    row = _renamed(record.value, columns)
    try:
        turns = _turns(row)
    except ValueError as error:
        absent = [theirs for theirs in (columns or {}).values() if theirs not in record.value]
        if not absent:
            raise
        raise ValueError(f"has no column {', '.join(absent)}; its keys are {', '.join(record.value)}") from error
    if not turns:
        raise ValueError("has no turn")
    return Conversation(_with_system(turns, row), record.where, _tools(row))


def _renamed(row: JsonObject, columns: Columns | None) -> JsonObject:
    """The row with our names for its columns; of the other keys only those that say more of the same turns."""
    if not columns:
        return row
    if not any(theirs in row for theirs in columns.values()):
        raise ValueError(f"has none of the columns {', '.join(columns.values())}; its keys are {', '.join(row)}")
    beside = {key: row[key] for key in ("system", "tools") if key in row}
    return beside | {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}


def _turns(row: JsonObject) -> list[Turn]:
    for key in ("messages", "conversations", "conversation"):
        if key in row:
            return _messages(row[key], key)
    if {"chosen", "rejected"} <= row.keys():
        raise ValueError("holds a preference (chosen, rejected): that is data of kind preference")
    for question, answer, about in ASKED:
        if question in row and answer in row:
            return _asked(row[question], row[answer], row.get(about, ""), (question, answer, about))
    if "text" in row:  # of no chat: every token is learned
        text = _text(row["text"], "text")
        return [Turn("assistant", text, trained=bool(text))]
    raise ValueError(
        f"has no turns that are known: its keys are {', '.join(row) or 'none'}; name them with data.columns, such as "
        "{prompt: KEY, completion: KEY}"
    )


def _asked(question: object, answer: object, about: object, keys: tuple[str, str, str]) -> list[Turn]:
    before = _messages(question, keys[0], trained=False) if isinstance(question, list) else None
    after = _messages(answer, keys[1]) if isinstance(answer, list) else None
    if before is None:
        said = _text(about, keys[2])
        before = [Turn("user", _text(question, keys[0]) if said else _asking(question, keys[0]), input=said)]
    elif about:
        raise ValueError(f"{keys[2]} stands beside a {keys[0]} that is a list of messages; put it into one of them")
    if after is None:  # Alpaca itself has some empty answers: there is nothing to learn from them
        text = _text(answer, keys[1])
        after = [Turn("assistant", text, trained=bool(text))]
    return [*before, *after]


def _asking(question: object, key: str) -> str:
    text = _text(question, key)
    if not text:
        raise ValueError(f"{key} is empty")
    return text


def _messages(value: object, key: str, *, trained: bool = True) -> list[Turn]:
    if isinstance(value, str):
        value = _json(value, key)
    if not isinstance(value, list):
        raise ValueError(f"{key} is no list of messages")
    if value and all(isinstance(one, str) for one in value):  # of LIMA: user and assistant in turn
        value = [{"role": ("user", "assistant")[number % 2], "content": one} for number, one in enumerate(value)]
    return [_message(one, f"{key}[{number}]", trained) for number, one in enumerate(value)]


def _message(value: object, where: str, trained: bool) -> Turn:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is no message with a role and a content")
    said = value.get("role", value.get("from"))
    if not isinstance(said, str) or said not in ROLES:
        raise ValueError(f"{where} has the role {said!r}; known are {', '.join(ROLES)}")
    role = ROLES[said]
    content = _text(value.get("content", value.get("value", "")), where)
    calls = _calls(value.get("tool_calls", ()), where)
    if said in _CALLS:
        calls = (_call(_json(content, where), where),)
        content = ""
    elif role == "assistant" and not content and not calls and "content" not in value and "value" not in value:
        raise ValueError(f"{where} says nothing: it has neither content nor tool_calls")
    learns = trained and role == "assistant" and _weight(value, where) > 0
    name = value.get("name")
    return Turn(role, content, learns, name if isinstance(name, str) else None, calls)


def _weight(value: JsonObject, where: str) -> float:
    """Of a turn, 0 or 1: whether it is trained for."""
    given = value.get("weight", value.get("train", value.get("training", 1)))
    if given not in (0, 1):
        raise ValueError(f"{where} has the weight {given!r}; allowed are 0 and 1")
    return float(given)


def _text(value: object, where: str) -> str:
    """A text, or the texts of a list of parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(_part(part, where) for part in value)
    raise ValueError(f"{where} is {value!r:.40}, which is no text")


def _part(part: object, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict) or part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
        kind = part.get("type") if isinstance(part, dict) else part
        raise ValueError(f"{where} has a part of type {kind!r}; only text is read")
    return str(part["text"])


def _calls(value: object, where: str) -> tuple[JsonObject, ...]:
    found = _json(value, where) if isinstance(value, str) else value
    if not isinstance(found, (list, tuple)):
        raise ValueError(f"{where}: tool_calls is no list")
    return tuple(_call(one, where) for one in found)


def _call(value: object, where: str) -> JsonObject:
    """A call as templates want it: {type, function: {name, arguments}}, arguments as an object where they are JSON."""
    if not isinstance(value, dict):
        raise ValueError(f"{where}: a tool call is no object")
    function = value.get("function", value)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f"{where}: a tool call has no name")
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):
            arguments = json.loads(arguments)
    rest = {"id": value["id"]} if "id" in value else {}
    return {**rest, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _tools(row: JsonObject) -> tuple[JsonObject, ...]:
    value = row.get("tools", row.get("functions", ()))
    value = _json(value, "tools") if isinstance(value, str) else value
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, dict) for one in value):
        raise ValueError("tools is no list of objects")
    return tuple(one if "function" in one else {"type": "function", "function": one} for one in value)


def _with_system(turns: list[Turn], row: JsonObject) -> tuple[Turn, ...]:
    said = row.get("system", row.get("system_prompt", ""))
    if not said or turns[0].role == "system" or not any(turn.role == "user" for turn in turns):
        return tuple(turns)
    return (Turn("system", _text(said, "system")), *turns)


def _json(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is no JSON: {error}") from error


# -- pairs -----------------------------------------------------------------------------------------------------------
def pair_of(record: Record, columns: Columns | None = None) -> Pair:
    """A question with a better and a worse answer; their common beginning is not trained for."""
    row = _renamed(record.value, columns)
    if not {"chosen", "rejected"} <= row.keys():
        raise ValueError(f"has no preference: chosen or rejected is missing; its keys are {', '.join(row)}")
    question = next((key for key in ("prompt", "question", "instruction", "query", "input") if key in row), None)
    about = next((key for key in ("input", "context") if key in row and key != question), None)
    before = [] if question is None else _before(row[question], question, _text(row[about], about) if about else "")
    sides = [_side(row[key], key, before) for key in ("chosen", "rejected")]
    common = _common(*sides)
    if not any(turn.role == "user" for turn in sides[0][:common]):
        raise ValueError("has no question that chosen and rejected both answer; give a prompt")
    tools = _tools(row)
    made = [
        Conversation(
            _with_system([replace(t, trained=t.trained and n >= common) for n, t in enumerate(side)], row),
            record.where,
            tools,
        )
        for side in sides
    ]
    return Pair(made[0], made[1], record.where)


def _before(value: object, key: str, about: str) -> list[Turn]:
    if isinstance(value, list):
        return _messages(value, key, trained=False)
    return [Turn("user", _asking(value, key), input=about)]


def _side(value: object, key: str, before: list[Turn]) -> list[Turn]:
    if isinstance(value, str) and not before and value.lstrip().startswith("Human:"):
        return _transcript(value)
    if not isinstance(value, list):
        return [*before, Turn("assistant", _text(value, key), trained=True)]
    turns = _messages(value, key)
    begins = [replace(turn, trained=False) for turn in turns[: len(before)]] == before
    return turns if begins or any(turn.role == "user" for turn in turns) else [*before, *turns]


def _transcript(text: str) -> list[Turn]:
    """The turns of a text such as those of hh-rlhf: `Human: …` and `Assistant: …`, each after an empty line."""
    parts = re.split(r"(?:^|\n\n)(Human|Assistant):[ ]?", text.strip())[1:]
    sides = zip(parts[::2], parts[1::2], strict=True)
    return [
        Turn("assistant", said.strip(), trained=True) if who == "Assistant" else Turn("user", said.strip())
        for who, said in sides
    ]


def _common(one: list[Turn], other: list[Turn]) -> int:
    """How many turns both begin with."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
