"""Between two steps: validate, save or copy into memory, ask and stop, each if it is due and agreed on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial

from launchyard.training.batching import is_share_read
from launchyard.training.checkpoint.commit import CheckpointKind
from launchyard.training.checkpoint.save_timer import SaveTimer
from launchyard.training.checkpoint.state import shards
from launchyard.training.loop.agree import agree_while_waiting
from launchyard.training.loop.measure import judged, measure
from launchyard.training.loop.parts import Agreement, Parts
from launchyard.training.optim.averaged import averaged_weights
from launchyard.training.own.frozen import title_of
from launchyard.training.own.values import ValidationDone
from launchyard.training.sections.duration import seconds_of
from launchyard.training.validation.asking import Asking, Point, ask_together
from launchyard.training.verdict import ranked


def boundary_due(parts: Parts, step: int, agreement: Agreement) -> bool:
    if agreement.save or agreement.snapshot or agreement.reason is not None:
        return True
    return validation_due(parts, step) or bool(points_due(parts, step)) or kind_of_save(parts, step) is not None


def early_end(parts: Parts) -> str | None:
    """The reason to end before the last step: the user's own code, the time, or the validations so far."""
    code = parts.context.recipe.code
    if code is not None and parts.learner.state.ended_by == code:
        return (None if parts.hooks is None else parts.hooks.wants_end) or f"StopTraining of {title_of(code)}"
    config = parts.context.recipe.early_stopping
    if is_out_of_time(parts):
        return f"train.max_time {parts.context.recipe.train.max_time} is over"
    return None if config is None else parts.learner.state.patience.verdict(config)


def end_by_code(parts: Parts, agreement: Agreement) -> bool:
    """Note the wish of the user's own code: a resume does not go on either. Returns True as below."""
    state = parts.learner.state
    if not agreement.end:
        return False
    state.ended_by = parts.context.recipe.code
    parts.telemetry.ending_early(state.step, early_end(parts) or "")
    return agreement.reason is None


def is_out_of_time(parts: Parts) -> bool:
    limit = parts.context.recipe.train.max_time
    return limit is not None and parts.learner.state.seconds_trained >= (seconds_of(limit) or 0)


def end_for_time(parts: Parts, agreement: Agreement) -> bool:
    """Note the seconds, on which all ranks have agreed. Returns True if that ends the run, unless it is to stop."""
    state = parts.learner.state
    if parts.context.recipe.train.max_time is None:
        return False
    state.seconds_trained = agreement.seconds_trained
    ends = is_out_of_time(parts) and agreement.reason is None
    if ends:
        parts.telemetry.ending_early(state.step, early_end(parts) or "")
    return ends


def final_step(parts: Parts) -> int:
    """No step follows it."""
    return parts.learner.state.step if early_end(parts) is not None else parts.context.max_steps


def kind_of_save(parts: Parts, step: int) -> CheckpointKind | None:
    """Of a checkpoint that is due at this step; None if none is."""
    every = parts.context.recipe.checkpoint.every_steps
    if step == final_step(parts) or (every is not None and step > 0 and step % every == 0):
        return "permanent"
    return "best" if any(one == step for one, _ in parts.learner.state.best) else None


def validation_due(parts: Parts, step: int) -> bool:
    if not parts.data.held_out or parts.learner.state.validated_step == step:
        return False
    context = parts.context
    config = context.recipe.validation
    if step == context.max_steps or (step == 0 and config.at_start) or is_out_of_time(parts):
        return True
    if config.every_epochs is not None:
        return step > 0 and is_share_read(context.recipe, context.workload.data, step, config.every_epochs)
    return config.every_steps is not None and step > 0 and step % config.every_steps == 0


def points_due(parts: Parts, step: int) -> list[Point]:
    return [point for point in parts.points if point.due(step, is_last=step == final_step(parts))]


def boundary(parts: Parts, step: int, agreement: Agreement, timer: SaveTimer) -> str | None:
    """Between two steps: validate, save, ask, stop, each if due and agreed. The reason if training ends here early."""
    reason = agreement.reason
    if reason is None and validation_due(parts, step):
        reason = run_validation(parts, step)
    if reason is not None:
        begin_to_stop(parts, step, reason)
    asked = reason is None and bool(points_due(parts, step))
    if reason is not None or asked or agreement.save or kind_of_save(parts, step) is not None:
        save(parts, step)
        timer.reset()
    elif agreement.snapshot:
        snapshot(parts, step, agreement)
    if asked and (reason := ask_points(parts, step)) is not None:
        begin_to_stop(parts, step, reason)
    if reason is not None:
        await_save(parts)
        report_saved(parts)
    return reason


def after_last_step(parts: Parts) -> str | None:
    """Save, then validate and ask: however long it takes, no step can be lost to it. The reason if it was cut short."""
    step = parts.learner.state.step
    save(parts, step)
    reason = run_validation(parts, step) if validation_due(parts, step) else None
    if reason is None and points_due(parts, step):
        reason = ask_points(parts, step)
    if reason is not None:
        begin_to_stop(parts, step, reason)
    await_save(parts)
    if reason is not None:
        report_saved(parts)
    return reason


def begin_to_stop(parts: Parts, step: int, reason: str) -> None:
    # The request may have reached another rank only.
    parts.flag.requested_at = parts.flag.requested_at or time.monotonic()
    parts.telemetry.stopping(step, reason)


def report_saved(parts: Parts) -> None:
    """Reports the agreed save as done, with the seconds since the stop request first reached this rank."""
    requested_at = parts.flag.requested_at
    if requested_at is not None:
        parts.telemetry.saved_before_stopping(time.monotonic() - requested_at)


def run_validation(parts: Parts, step: int) -> str | None:
    """Measure and record; the reason if a stop was agreed on in between (it is measured again after the resume)."""
    telemetry = parts.telemetry
    telemetry.clock.enter("validation")
    telemetry.validating(step)
    reason: str | None = None

    def interrupted() -> bool:
        nonlocal reason
        _, reason = agree_while_waiting(parts, False)
        return reason is not None

    with averaged_weights(parts.learner.optimizer, wanted=parts.context.recipe.validation.ema):
        found = measure(parts, interrupted)
    telemetry.clock.enter("other")
    telemetry.training()
    if found is None:
        return reason
    take_figures(parts, step, judged(found))
    for name, measured in found.items():
        telemetry.validated(step, name, means=measured.means, seconds=measured.seconds)
        if parts.hooks is not None:
            figures = {figure: value for figure, value in measured.means.items() if figure != "loss"}
            done = ValidationDone(step, measured.means["loss"], measured.seconds, figures, name)
            parts.hooks.on_validation(done)
    return None


def take_figures(parts: Parts, step: int, means: Mapping[str, float]) -> None:
    """What the figures of a validation decide, the same on every rank."""
    state = parts.learner.state
    recipe = parts.context.recipe
    state.validation_loss = means.get("loss")
    state.validated_step = step
    if step > 0:  # of which there is no checkpoint
        state.best = ranked(state.best, step, means, recipe.checkpoint)
    if recipe.early_stopping is not None:
        state.patience = state.patience.after(means, recipe.early_stopping)
        if (why := state.patience.verdict(recipe.early_stopping)) is not None and step < parts.context.max_steps:
            parts.telemetry.ending_early(step, why)


def ask_points(parts: Parts, step: int) -> str | None:
    """Ask the checkpoint of this step, which is saved first; the reason if a stop was agreed on in between."""
    telemetry = parts.telemetry
    telemetry.clock.enter("checkpoint_blocking")
    parts.checkpointer.wait()
    telemetry.clock.enter("validation")
    reason = next((reason for point in points_due(parts, step) if (reason := ask_point(parts, point, step))), None)
    telemetry.clock.enter("other")
    telemetry.training()
    return reason


def ask_point(parts: Parts, point: Point, step: int) -> str | None:
    telemetry = parts.telemetry
    saved = parts.checkpointer
    is_main = parts.context.world.is_main
    point.begin(telemetry, step)
    asking: Asking | None = None
    if is_main and saved.last_saved == step:
        asking = Asking(point.work, saved.run.path(saved.run.checkpoint_dir(step)), parts.context.device)
    reason = ask_together(asking, is_main=is_main, agree=partial(agree_while_waiting, parts))
    if reason is None:
        point.asked(step)
        if is_main:
            point.report(telemetry, step, asking, is_last=step == final_step(parts))
    return reason


def save(parts: Parts, step: int) -> None:
    """Begin to save the state after `step` steps, unless training resumed from that very step."""
    learner = parts.learner
    clock = parts.telemetry.clock
    clock.enter("checkpoint_blocking")
    if step > 0 and parts.checkpointer.last_saved != step:
        kind = kind_of_save(parts, step) or "temporary"
        parts.checkpointer.save(step, shards(learner.model, learner.optimizer), learner.state.to_json(), kind)
    clock.enter("other")


def snapshot(parts: Parts, step: int, agreement: Agreement) -> None:
    """Copy the state after `step` steps into the agents' memory."""
    learner = parts.learner
    clock = parts.telemetry.clock
    clock.enter("checkpoint_blocking")
    seconds = parts.checkpointer.snapshot(
        step,
        shards(learner.model, learner.optimizer),
        learner.state.to_json(),
        saving=agreement.saving,
        unsettled=agreement.unsettled,
    )
    kept = parts.checkpointer.snapshots
    parts.telemetry.snapshot_taken(step, seconds, copied=None if kept is None else kept.copied)
    clock.enter("other")


def await_save(parts: Parts) -> None:
    """Wait until the last save is committed; raises its error if it failed."""
    clock = parts.telemetry.clock
    clock.enter("checkpoint_blocking")
    parts.checkpointer.wait(must_succeed=True)
    clock.enter("other")
