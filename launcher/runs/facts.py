"""What is frozen in a run directory, read when asked for, and what its newest attempt makes of it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from launchyard.run.rundir import RunDir

if TYPE_CHECKING:
    from launchyard.training.recipe import Recipe
    from launchyard.training.spec import Workload


# -- what a run is ---------------------------------------------------------------------------------------------------
class RunFacts:
    """What is frozen in a run directory, read when asked for, and what its newest attempt makes of it."""

    def __init__(self, run: RunDir) -> None:
        self.run = run

    @cached_property
    def plan(self) -> dict[str, Any]:
        try:
            return dict(self.run.read_json("plan.json"))
        except (FileNotFoundError, ValueError):
            return {}

    @property
    def run_id(self) -> str:
        return str(self.plan.get("run_id") or self.run.url.rsplit("/", 1)[-1])

    @property
    def name(self) -> str:
        return str(self.plan.get("name", ""))

    def overrides(self) -> dict[str, Any]:
        """Those of the newest attempt; all that were ever given to the run."""
        attempts = self.run.attempts()
        return dict(self.run.job(attempts[-1]).overrides) if attempts else {}

    def max_steps(self) -> int | None:
        """Steps of the whole run as its newest attempt means it; None if that cannot be told."""
        if not self.overrides():
            planned = self.plan.get("max_steps")
            return int(planned) if planned is not None else None
        from launchyard.training.batching import count_steps

        try:
            recipe, workload = effective(self.run, self.overrides())
        except (FileNotFoundError, ValueError):
            return None
        return count_steps(recipe, workload.data.n_tokens)


def effective(run: RunDir, overrides: dict[str, Any]) -> tuple[Recipe, Workload]:
    """The recipe of an attempt, and the frozen part of the plan. FileNotFoundError or ValueError without them."""
    import yaml

    from launchyard.training.recipe import Recipe, apply_overrides
    from launchyard.training.spec import Workload

    raw = yaml.safe_load(run.read_text("recipe.yaml"))
    recipe = Recipe.model_validate(apply_overrides(raw, overrides))
    return recipe, Workload.model_validate(run.read_json("plan.json"))
