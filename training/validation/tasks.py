"""Tasks of lm-evaluation-harness, asked of checkpoints: a score is that of `launch evaluate` of the same one."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from launchyard.host.packages import install_command
from launchyard.run import layout
from launchyard.run.rundir import RunDir
from launchyard.storage.damage import JsonObject
from launchyard.training.distributed import World, from_rank_zero
from launchyard.training.sections.validation import ValidationConfig
from launchyard.training.telemetry.telemetry import Telemetry
from launchyard.training.validation.asking import NOT_SAVED, Asking, Scheduled

if TYPE_CHECKING:
    from launchyard.model.loaded import LoadedModel

KEPT = ("task", "metric", "filter", "value", "stderr", "n_shot", "n_samples", "version")


class TaskPoint(Scheduled):
    """known: steps with scores, which are not asked again."""

    def __init__(self, config: ValidationConfig, known: set[int]) -> None:
        self._config = config
        super().__init__(config.tasks_every_steps, known)

    def begin(self, telemetry: Telemetry, step: int) -> None:
        telemetry.asking_tasks(step, self._config.tasks)

    def work(self, loaded: LoadedModel, check: Callable[[], None]) -> JsonObject:
        """scores, and the digest of the weights that have them."""
        from launchyard.model.evaluate.harness import HarnessModel
        from launchyard.model.evaluate.tasks import TaskList, TaskSettings, run_tasks
        from launchyard.model.weights.load import digest_in_memory

        config = self._config
        settings = TaskSettings(
            num_fewshot=config.tasks_num_fewshot, limit=config.tasks_limit, chat=config.tasks_chat_template
        )
        model = HarnessModel(loaded, on_progress=lambda kind, done, total: check())
        rows = run_tasks(model, TaskList(config.tasks), settings).rows
        scores = [{key: value for key, value in row.items() if key in KEPT} for row in rows]
        return {"scores": scores, "weights": digest_in_memory(loaded.transformer)}

    def report(self, telemetry: Telemetry, step: int, asking: Asking | None, *, is_last: bool) -> None:
        if asking is None or asking.error is not None:
            telemetry.tasks_failed(step, NOT_SAVED if asking is None else str(asking.error))
        else:
            telemetry.tasks_done(step, **asking.answer, seconds=asking.seconds)


def open_task_point(
    run: RunDir, world: World, config: ValidationConfig, telemetry: Telemetry, *, step: int
) -> TaskPoint:
    """For a run that goes on from `step`; shows the scores that there are. ValueError if lm_eval is not there."""
    rows: list[JsonObject] = []
    if world.is_main:
        if find_spec("lm_eval") is None:
            raise ValueError(
                "validation.tasks need lm_eval, which is not installed where the workers run; "
                f"{install_command('evaluate')}, or leave them out"
            )
        rows = [row for row in run.rows(layout.TASKS) if row["step"] <= step]
        telemetry.show_scores(rows[-1]["scores"] if rows else [])
    return TaskPoint(config, set(from_rank_zero([int(row["step"]) for row in rows])))
