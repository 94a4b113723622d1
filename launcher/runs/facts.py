"""Facts of a run: its frozen plan, read on first use, and its length as the newest attempt has it."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from launchyard.run import layout
from launchyard.run.rundir import RunDir


# -- facts ----------------------------------------------------------------------------------------------------------
class RunFacts:
    """The plan of a run, in the place where it is now, read on first use; the length as the newest attempt has it."""

    def __init__(self, run: RunDir) -> None:
        self.run = run

    @cached_property
    def plan(self) -> dict[str, Any]:
        plan = self.run.find_json(layout.PLAN)
        return {} if plan is None else {**plan, **(self.run.find_json(layout.PLACE) or {})}

    @property
    def run_id(self) -> str:
        return str(self.plan.get("run_id") or self.run.url.rsplit("/", 1)[-1])

    @property
    def name(self) -> str:
        return str(self.plan.get("name", ""))

    def max_steps(self) -> int | None:
        """Steps of the whole run, by its newest attempt; None if not known."""
        attempts = self.run.attempts()
        if not attempts or not self.run.job(attempts[-1]).overrides:
            planned = self.plan.get("max_steps")
            return int(planned) if planned is not None else None
        from launchyard.training.batching import count_steps
        from launchyard.training.recipe import recipe_of
        from launchyard.training.spec import read_workload

        try:
            return count_steps(recipe_of(self.run, attempts[-1]), read_workload(self.run).data)
        except (FileNotFoundError, ValueError):
            return None
