"""Rows for MLflow, resumed into the same run."""

from __future__ import annotations

import time
from typing import Any

from launchyard.run.layout import MLFLOW
from launchyard.run.rundir import RunDir
from launchyard.training.recipe import Recipe
from launchyard.training.telemetry.trackers.base import Values


# -- MLflow ----------------------------------------------------------------------------------------------------------
class MlflowTracker:
    """One MLflow run for all attempts, found by its tag. In MLFLOW_TRACKING_URI if set, else beside the run."""

    TAG = "launchyard.run_id"

    def __init__(self, run: RunDir, recipe: Recipe, run_id: str) -> None:
        import mlflow

        uri = None if mlflow.environment_variables.MLFLOW_TRACKING_URI.is_set() else self._own_uri(run)
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        name = recipe.metrics.project or recipe.name
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        found = self._client.search_runs([number], f"tags.`{self.TAG}` = '{run_id}'")
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._id = self._client.create_run(number, run_name=run_id, tags={self.TAG: run_id}).info.run_id
            self._log_recipe(recipe)
        self._have = {key: self._last_step(key) for key in ("train/loss", "validation/loss")}
        self.done = max(0, min(self._have.values()))
        self._rows: list[Any] = []
        self._sent = time.monotonic()

    @staticmethod
    def _own_uri(run: RunDir) -> str:
        if not run.local:
            raise ValueError("set MLFLOW_TRACKING_URI: MLflow cannot keep its runs beside one that lies in a store")
        return f"sqlite:///{run.path(MLFLOW)}"

    def _log_recipe(self, recipe: Recipe) -> None:
        for section, values in recipe.model_dump(mode="json", exclude_none=True).items():
            for key, value in values.items() if isinstance(values, dict) else [("", values)]:
                self._client.log_param(self._id, f"{section}.{key}".rstrip("."), str(value)[:500])

    def _last_step(self, key: str) -> int:
        return max((metric.step for metric in self._client.get_metric_history(self._id, key)), default=-1)

    def log(self, step: int, values: Values) -> None:
        from mlflow.entities import Metric

        known_by = next(
            (key for key in values if key.startswith("validation/") and key.endswith("/loss")), "train/loss"
        )
        if known_by not in self._have:  # of a set of validation.sets
            self._have[known_by] = self._last_step(known_by)
        if step > self._have[known_by]:
            now = int(time.time() * 1000)
            self._rows += [Metric(key, value, now, step) for key, value in values.items()]
        if len(self._rows) >= 500:
            self._send()

    def flush(self) -> None:
        if time.monotonic() - self._sent > 5.0:
            self._send()

    def _send(self) -> None:
        rows = self._rows
        self._rows = []
        for start in range(0, len(rows), 1000):
            self._client.log_batch(self._id, metrics=rows[start : start + 1000])
        self._sent = time.monotonic()

    def close(self) -> None:
        self._send()
        self._client.set_terminated(self._id)
