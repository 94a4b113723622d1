"""A text of the model, written by its checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from launchyard.run import layout
from launchyard.run.rundir import RunDir
from launchyard.storage.damage import JsonObject
from launchyard.training.distributed import World, from_rank_zero
from launchyard.training.sections.validation import SampleConfig
from launchyard.training.telemetry.telemetry import Telemetry
from launchyard.training.validation.asking import NOT_SAVED, Asking, Scheduled

if TYPE_CHECKING:
    from launchyard.model.loaded import LoadedModel


class SamplePoint(Scheduled):
    """known: steps that have their text. seed: of what is drawn, the same at each step."""

    def __init__(self, run: RunDir, config: SampleConfig, seed: int, known: set[int]) -> None:
        self._run = run
        self._config = config
        self._seed = seed
        super().__init__(config.every_steps, known)

    def begin(self, telemetry: Telemetry, step: int) -> None:
        telemetry.sampling(step)

    def work(self, loaded: LoadedModel, check: Callable[[], None]) -> JsonObject:
        """The prompt with what follows it."""
        config = self._config
        text = loaded.generate(
            config.prompt,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_k=config.top_k,
            seed=self._seed,
        )
        return {"prompt": config.prompt, "text": text}

    def report(self, telemetry: Telemetry, step: int, asking: Asking | None, *, is_last: bool) -> None:
        if asking is None or asking.error is not None:
            telemetry.not_sampled(step, NOT_SAVED if asking is None else str(asking.error))
            return
        if is_last:
            self._run.write_text(layout.SAMPLE, f"{asking.answer['prompt']}{asking.answer['text']}\n")
        telemetry.sampled(step, **asking.answer, seconds=asking.seconds)


def open_sample_point(run: RunDir, world: World, config: SampleConfig, *, seed: int, step: int) -> SamplePoint:
    """For a run that goes on from `step`."""
    rows = [int(row["step"]) for row in run.rows(layout.SAMPLES) if row["step"] <= step] if world.is_main else []
    return SamplePoint(run, config, seed, set(from_rank_zero(rows)))
