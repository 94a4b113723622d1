"""Rows for Weights & Biases, resumed into the same run."""

from __future__ import annotations

import tempfile

from launchyard.run.rundir import RunDir
from launchyard.training.recipe import Recipe
from launchyard.training.telemetry.trackers.base import TrackerMark, Values


# -- Weights & Biases ------------------------------------------------------------------------------------------------
class WandbTracker:
    """One W&B run for all attempts, under the run's id. WANDB_API_KEY, WANDB_MODE=offline and such are W&B's own."""

    def __init__(self, run: RunDir, recipe: Recipe, run_id: str, start_step: int) -> None:
        import wandb

        # Written beside the run where that is local; W&B's offline files are folders of this machine
        folder = run.path() if run.local else tempfile.mkdtemp(prefix="launchyard-wandb-")
        self._run = wandb.init(
            id=run_id,
            name=run_id,
            project=recipe.metrics.project or recipe.name,
            config=recipe.model_dump(mode="json", exclude_none=True),
            dir=folder,
            resume="allow",
            settings=wandb.Settings(silent=True),
        )
        self._mark = TrackerMark(run, "wandb")
        # W&B's own next step; it takes none a second time. Offline it does not know
        self._from = int(self._run.step or 0)
        self.done = max(0, self._from - 1) if not self._run.offline else min(self._mark.read(), start_step)
        self._last = self.done

    def log(self, step: int, values: Values) -> None:
        if step >= self._from:
            self._run.log(dict(values), step=step)
        self._last = step

    def flush(self) -> None:
        self._mark.write(self._last)

    def close(self) -> None:
        self._run.finish()
        self._mark.write(self._last, now=True)
