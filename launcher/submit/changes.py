"""The changes of a recipe that a resume may make, and their effect; the others would make another run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from launchyard.errors import RecipeErrors
from launchyard.launcher.data.resolve import SETS
from launchyard.launcher.submit.run_data import PLACES
from launchyard.training.recipe import EITHER_OR, Recipe
from launchyard.training.sections.optimizer import ScheduleConfig

# The identity of a run: another value would make another run.
FIXED = (
    *("name", "after", "model", "adapter", "data", "preference", "tokenizer", "optimizer.name", "optimizer.momentum"),
    *("train.seed", "train.global_batch_size", "train.batch_size_ramp", "train.precision", "train.bf16_rounding"),
    *("train.ema_decay", "train.overfit_batches", SETS),
)
SCHEDULE = "data.mixture_schedule"  # except for this: the steps to come are not part of it
# All others, by their effect.
TRAINING = "trains otherwise from here on"
LENGTH = "stretches the schedule"  # unless that does not depend on the length
WHERE = "the same tokens, by other workers"
BESIDE = "leaves training as it is"
LAST = "may end the run at another step"
MOVED = "the same tokens, in another place"
MIXED = "other shares from that step on, each source where it was"
ENDS_EARLY = ("early_stopping", "train.max_time", "code")  # keys by which a run may end before its last step
EFFECTS = {
    **dict.fromkeys(("optimizer", "schedule", "train.max_grad_norm", "train.load_balancing_loss"), TRAINING),
    **dict.fromkeys(("train.max_grad_value", "train.dropout", "train.label_smoothing", "train.z_loss"), TRAINING),
    "stability": TRAINING,
    **dict.fromkeys(("train.max_steps", "train.max_tokens", "train.max_epochs"), LENGTH),
    **dict.fromkeys(("resources", "parallel", "train.micro_batch_size", "train.device"), WHERE),
    **dict.fromkeys(PLACES, MOVED),  # before `validation`, where some of them are
    **dict.fromkeys(("checkpoint", "validation", "metrics", "notify", "profile", "watchdog"), BESIDE),
    **dict.fromkeys(ENDS_EARLY, LAST),
    "code": TRAINING,
    SCHEDULE: MIXED,
}


@dataclass(frozen=True)
class Change:
    """One key of the recipe since the attempt before, with its effect in words."""

    key: str
    old: object
    new: object
    effect: str

    @property
    def lengthens(self) -> bool:
        """Returns True if it may let a run go on that has ended."""
        return any(is_within(self.key, key) for key in (*ENDS_EARLY, *(f"train.{key}" for key in EITHER_OR["train"])))

    def __str__(self) -> str:
        old, new = ("unset" if value is None else value for value in (self.old, self.new))
        return f"{self.key} {old} → {new}: {self.effect}"


def changes_between(before: Recipe, after: Recipe) -> Iterator[Change]:
    """The changed keys, in the order of the recipe."""
    old = flatten(before.model_dump(mode="json"))
    new = flatten(after.model_dump(mode="json"))
    for key in dict.fromkeys([*old, *new]):
        if old.get(key) != new.get(key):
            yield Change(key, old.get(key), new.get(key), _effect(key, after.schedule))


def _effect(key: str, schedule: ScheduleConfig) -> str:
    effect = next(effect for prefix, effect in EFFECTS.items() if is_within(key, prefix))
    relative = isinstance(schedule.warmup_steps, float) and schedule.warmup_steps < 1
    free = schedule.name in ("constant", "inverse-sqrt")
    return BESIDE if effect == LENGTH and free and not relative else effect


def is_within(key: str, prefix: str) -> bool:
    """Is a dotted key this one, or below it?"""
    return key == prefix or key.startswith(f"{prefix}.")


def accumulate(given: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """All overrides of a run so far; a later one wins, and a new length or source replaces the old one."""
    replaced = set(changes)
    for section, names in EITHER_OR.items():
        alike = {f"{section}.{name}" for name in names}
        replaced |= alike if replaced & alike else set()
    return {key: value for key, value in given.items() if key not in replaced} | changes


def is_fixed(key: str) -> bool:
    """Does a key belong to the identity of a run?"""
    return key != SCHEDULE and any(is_within(key, fixed) for fixed in FIXED)


def refuse_another_run(before: Recipe, after: Recipe) -> None:
    """RecipeErrors that name every change that would make another run of this one."""
    old = flatten(before.model_dump(mode="json"))
    new = flatten(after.model_dump(mode="json"))
    problems = [
        f"{key}: {new.get(key)} on the command line, but this run was made with {old.get(key)}; a run keeps its {fixed}"
        for key in dict.fromkeys([*old, *new])
        for fixed in FIXED
        if is_within(key, fixed) and old.get(key) != new.get(key)
        if key != SCHEDULE and not _is_place(key, old, new)
    ]
    if problems:
        raise RecipeErrors(problems, hint="make a new run; model.init_from=RUN lets it start from this run's weights")


def refuse_another_past(before: Recipe, after: Recipe, step: int) -> None:
    """RecipeErrors if the weights of a step that stays, one before `step`, would be others than they were."""
    kept = [stage for stage in before.data.mixture_schedule or () if stage.from_step < step]
    given = [stage for stage in after.data.mixture_schedule or () if stage.from_step < step]
    if given == kept:
        return
    weights = [source.weight for source in after.data.mixture or ()]
    wanted = [*(stage.model_dump() for stage in kept), {"from_step": step, "weights": weights}]
    raise RecipeErrors(
        [f"{SCHEDULE}: the first {step} steps stay as they are, and it would change their weights"],
        hint=f"change what comes after them, such as '{SCHEDULE}={json.dumps(wanted)}'; --from-step goes further back",
    )


def _is_place(key: str, old: dict[str, object], new: dict[str, object]) -> bool:
    """Does a key only name a place, before and after? A share of held-out text does not."""
    if key in ("data.source", "data.mixture"):
        return True
    if is_within(key, SETS):
        return key in old and key in new
    return key in PLACES and isinstance(new.get(key), str) and not isinstance(old.get(key), float)


def places(changes: dict[str, object], before: Recipe, after: Recipe) -> dict[str, object]:
    """The keys that name a place of data anew, with full paths."""
    old = flatten(before.model_dump(mode="json"))
    new = flatten(after.model_dump(mode="json"))
    keys = [*PLACES, *(key for key in new if is_within(key, SETS))]
    named = {key: new[key] for key in keys if _is_place(key, old, new) and new.get(key) is not None}
    return {key: value for key, value in named.items() if key in changes or value != old.get(key)}


def flatten(value: object, before: str = "") -> dict[str, object]:
    """Sections within sections as one mapping of dotted keys; lists are values."""
    if not isinstance(value, dict):
        return {before: value}
    return {
        key: leaf
        for name, child in value.items()
        for key, leaf in flatten(child, f"{before}.{name}".lstrip(".")).items()
    }
