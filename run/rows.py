"""Rows of steps, validations and tasks, one JSON object per line: their schema, and how a file of them is read.

Readers take rows as mappings: a row may be of an older version, and hold less.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from launchyard.storage.damage import JsonObject


class Means(BaseModel):
    """What a model does on a batch: the loss that is made smaller, and what is measured beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: float = Field(description="Mean over all labels, in nats per token; of preferences a mean over pairs.")
    reward_chosen: float | None = Field(default=None, description="Preferences: mean reward of the better answers.")
    reward_rejected: float | None = Field(default=None, description="Preferences: mean reward of the worse answers.")
    reward_margin: float | None = Field(default=None, description="Preferences: mean difference of the two rewards.")
    reward_accuracy: float | None = Field(
        default=None, description="Preferences: share of pairs whose better answer has the higher reward."
    )
    figures: dict[str, float] | None = Field(default=None, description="Of the user's own code, by name.")


def with_own_figures(means: Mapping[str, float]) -> JsonObject:
    """Means as a row holds them: those that every run may have, and figures of the user's own code in `figures`."""
    known = {name: value for name, value in means.items() if name in ValidationRow.model_fields}
    own = {name: value for name, value in means.items() if name not in known}
    return {**known, "figures": own} if own else known


class StepRow(Means):
    """A line of metrics/steps-NNNN.jsonl: one optimizer step, its means over the global batch."""

    step: int = Field(ge=1, description="Finished optimizer steps.")
    grad_norm: float | None = Field(
        description="Global norm of the gradient, before clipping; null of a step that was skipped."
    )
    grad_norms: dict[str, float] | None = Field(
        default=None,
        description="Of steps that metrics.grad_norms asks for: that norm by part of the model, `embed`, `blocks.0` "
        "and so on; the root of the sum of their squares is grad_norm.",
    )
    group_grad_norms: dict[str, float] | None = Field(
        default=None,
        description="The same by rule of optimizer.groups, named by its pattern; `rest` is all the others.",
    )
    lr: float = Field(description="Learning rate of this step.")
    tokens_seen: int = Field(description="Tokens since the first step, over all attempts; padding is none.")
    source_tokens: dict[str, int] | None = Field(
        default=None, description="Of a mixture: those tokens by the source they are of, in the order of data.mixture."
    )
    labels: int | None = Field(
        default=None, description="Tokens of this step that have a label; fewer than all where prompts have none."
    )
    tokens_per_second: float = Field(description="Of this step, over all workers.")
    step_seconds: float = Field(description="Wall time since the step before, without a save or a validation between.")
    data_wait_seconds: float = Field(description="Seconds of it that waited for data.")
    data_hash: str = Field(description="Order-free hash of the tokens of this step, 64 bits in hex.")
    mfu: float | None = Field(
        default=None, description="Model operations over what the devices could have done; absent if that is unknown."
    )
    phases: dict[str, float] = Field(
        default={}, description="Wall time of rank 0 since the row before by [phase](metrics.md), in seconds."
    )
    attempt: int = Field(description="Attempt that made the step.")
    time: float = Field(description="Time of the end, in Unix seconds.")


class ValidationRow(Means):
    """A line of metrics/validation-NNNN.jsonl: one validation of one set, its means over the held-out data."""

    step: int = Field(ge=0, description="Finished optimizer steps; 0 before the first.")
    set: str | None = Field(
        default=None, description="Name in validation.sets; absent of the data that data.validation holds out."
    )
    perplexity: float | None = Field(
        default=None, description="exp of the loss; absent of preferences and of a loss of one's own."
    )
    bits_per_byte: float | None = Field(
        default=None,
        description="The loss of all labels in bits, over the bytes of their text, of which control tokens have none. "
        "Absent of preferences, of a loss of one's own, and where the tokenizer does not tell the text of a token.",
    )
    seconds: float = Field(description="For which it took.")
    attempt: int = Field(description="Attempt that measured it.")
    time: float = Field(description="Time of the end, in Unix seconds.")


class TaskScore(BaseModel):
    """One figure of one task, as lm-evaluation-harness names it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str = Field(description="Task or group.")
    metric: str = Field(description="Such as acc or exact_match.")
    filter: str = Field(description="How answers were read; none where they were taken as they are.")
    value: float | None = Field(description="The figure; null where there is none.")
    stderr: float | None = Field(description="Its standard error.")
    n_shot: int | None = Field(description="Answered samples before each.")
    n_samples: int | None = Field(description="Samples that were asked.")
    version: str | None = Field(description="Of the task.")


class TasksPoint(BaseModel):
    """A line of metrics/tasks-NNNN.jsonl: one checkpoint that was asked tasks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int = Field(ge=1, description="Finished optimizer steps.")
    scores: list[TaskScore] = Field(description="Every figure of every task.")
    weights: str = Field(description="Digest of the weights, as `launch evaluate` gives it.")
    seconds: float = Field(description="For which it took.")
    attempt: int = Field(description="Attempt that asked.")
    time: float = Field(description="Time of the end, in Unix seconds.")


class SampleRow(BaseModel):
    """A line of metrics/samples-NNNN.jsonl: a text that a checkpoint has written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int = Field(ge=1, description="Finished optimizer steps.")
    prompt: str = Field(description="How it began.")
    text: str = Field(description="How it went on.")
    seconds: float = Field(description="For which it took.")
    attempt: int = Field(description="Attempt that wrote it.")
    time: float = Field(description="Time of the end, in Unix seconds.")


SPEED_ROWS = 20  # steps over which speed is averaged
PACE_ROWS = 100  # and the time of a step, in which saves and validations come and go
NUMBERS = ("step", "loss", "attempt", "time")


def is_row(row: JsonObject) -> bool:
    """Returns True for a step or a validation of any version; False for a line that lost what readers rely on."""
    return isinstance(row.get("step"), int) and all(isinstance(row.get(name), int | float) for name in NUMBERS)


@dataclass(frozen=True)
class Surviving:
    """Which rows of an attempt count: none after the step from which a later attempt went on, and none that it had
    written before it went back to an earlier step. back: when it did so, and to which.
    """

    last: float = math.inf
    back: Sequence[tuple[float, int]] = ()

    def has(self, row: JsonObject) -> bool:
        step = int(row["step"])
        if step > self.last:
            return False
        return not self.back or not any(float(row["time"]) <= when and step > to for when, to in self.back)


def in_order(rows: Iterable[JsonObject]) -> Iterator[JsonObject]:
    """Each step once, of validations each set of a step once, by its name. Holds the rows of one step.

    A row that comes after those of later steps is there twice: a store had taken it already.
    """
    step = -1
    of_step: dict[str, JsonObject] = {}
    for row in rows:
        number = int(row["step"])
        if number > step:
            yield from (of_step[name] for name in sorted(of_step))
            step = number
            of_step = {}
        if number == step:
            of_step[str(row.get("set") or "")] = row
    yield from (of_step[name] for name in sorted(of_step))


def is_of_set(row: JsonObject, name: str = "") -> bool:
    """Is a row of a validation about that set? Without a name, about the data that data.validation holds out."""
    return (row.get("set") or "") == name


def sets_of(rows: Iterable[JsonObject]) -> list[str]:
    """The other sets that rows of validations are about, in their order."""
    return list(dict.fromkeys(row["set"] for row in rows if row.get("set")))


def judged_value(row: JsonObject, metric: str) -> float | None:
    """Of a row of a validation, the figure that a recipe calls loss or NAME.loss; None if it is of another set."""
    name, _, figure = metric.rpartition(".")
    return float(row[figure]) if is_of_set(row, name) and figure in row else None


def is_tasks_point(row: JsonObject) -> bool:
    """The same of a line about tasks."""
    scores = row.get("scores")
    return isinstance(row.get("step"), int) and isinstance(scores, list) and all(map(_is_score, scores))


def is_sample(row: JsonObject) -> bool:
    """The same of a line with a text."""
    return isinstance(row.get("step"), int) and isinstance(row.get("text"), str)


def _is_score(score: object) -> bool:
    return isinstance(score, dict) and all(isinstance(score.get(key), str) for key in ("task", "metric", "filter"))


def score_name(score: JsonObject) -> str:
    """Of a figure, where it stands among others: task/metric, and how answers were read where there is a choice."""
    name = f"{score['task']}/{score['metric']}"
    return name if score["filter"] == "none" else f"{name}/{score['filter']}"


def values_of(scores: Sequence[JsonObject]) -> dict[str, float]:
    """Figures by their names, without those that have no value."""
    return {score_name(score): float(score["value"]) for score in scores if score.get("value") is not None}


@dataclass(frozen=True)
class Pace:
    """Speed of the last steps of one attempt, and wall time a step, each with all that lay between them."""

    tokens_per_second: float
    step_seconds: float

    def seconds_to(self, max_steps: int, *, step: int) -> float:
        return max(0, max_steps - step) * self.step_seconds


def pace_of(rows: Sequence[JsonObject]) -> Pace | None:
    """The pace at the last of these rows of steps, which are of one attempt, oldest first; None if they do not tell."""
    if not rows or not all(rows[-1].get(name) for name in ("tokens_per_second", "step_seconds")):
        return None
    speed = float(rows[-1]["tokens_per_second"])
    each = float(rows[-1]["step_seconds"])
    seconds, steps, tokens = _between(rows[-SPEED_ROWS:])
    if seconds > 0 and steps > 0 and tokens > 0:
        speed = tokens / seconds
    seconds, steps, _ = _between(rows[-PACE_ROWS:])
    if seconds > 0 and steps > 0:
        each = seconds / steps
    return Pace(speed, each)


def _between(rows: Sequence[JsonObject]) -> tuple[float, int, int]:
    """Seconds, steps and tokens from the first to the last."""
    first = rows[0]
    last = rows[-1]
    tokens = int(last.get("tokens_seen", 0)) - int(first.get("tokens_seen", 0))
    return float(last["time"]) - float(first["time"]), int(last["step"]) - int(first["step"]), tokens
