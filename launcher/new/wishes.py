"""What a person wants of a new recipe: task, model, data, budget. Knows no machine and asks nobody."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from launchyard.launcher.recipe.bundled import recipe_folder

Task = Literal["pretrain", "finetune"]
Unit = Literal["seconds", "tokens", "steps", "epochs"]
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
BUDGET_HELP = "30m, 8h or 2d of time; 500M or 10B tokens; 1000steps; 3epochs"


@dataclass(frozen=True)
class Budget:
    """How long a run shall be."""

    unit: Unit
    amount: float
    text: str


def parse_budget(text: str) -> Budget:
    """The budget in words such as 8h, 10B, 1000steps or 3epochs. ValueError for anything else."""
    words = text.replace(" ", "").replace("_", "").replace(",", "")
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)(steps?|epochs?)", words):
        unit: Unit = "steps" if found[2].startswith("step") else "epochs"
        return _checked(Budget(unit, float(found[1]), words), text)
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", words):
        return _checked(Budget("seconds", float(found[1]) * _SECONDS[found[2]], words), text)
    if found := re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)([kKMBT]?)(tokens?)?", words):
        return _checked(Budget("tokens", float(found[1]) * _COUNTS[found[2].lower()], words), text)
    raise ValueError(f"{text!r} is no budget; such are {BUDGET_HELP}")


def _checked(budget: Budget, text: str) -> Budget:
    least = 0.01 if budget.unit == "epochs" else 1.0
    if budget.amount < least:
        raise ValueError(f"{text!r} is too short; such are {BUDGET_HELP}")
    return budget


def clock_time(seconds: float) -> str:
    """As keys take it: [D-]HH:MM:SS."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{f'{days}-' if days else ''}{hours:02}:{minutes:02}:{rest:02}"


def usual_tokenizer() -> str:
    """For text, if none is named."""
    return str(recipe_folder() / "quickstart/tokenizer.json")


@dataclass(frozen=True)
class Wishes:
    """The answers. `model`: a preset to pretrain, a MODEL to finetune; None: the preset that fits.

    tokenizer: of text that is not prepared; None where the data or the model has one.
    """

    name: str
    task: Task
    data: tuple[str, ...]
    budget: Budget
    model: str | None = None
    tokenizer: str | None = None
    method: str = "lora"
    nodes: int = 1
    time_limit: str | None = None

    @property
    def sources(self) -> str | list[str]:
        return self.data[0] if len(self.data) == 1 else list(self.data)
