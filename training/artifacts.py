"""Results that a run writes when its training has ended: the loss curve and the weights."""

from __future__ import annotations

from launchyard.run.checkpoints import newest_checkpoint
from launchyard.run.events import EXPORTED
from launchyard.run.layout import LOSS_CURVE, STEPS, TOKENIZER_FOLDER, VALIDATION, WEIGHTS
from launchyard.run.rows import is_of_set
from launchyard.run.rundir import RunDir
from launchyard.run.svg import Course, loss_svg
from launchyard.training.recipe import Recipe
from launchyard.training.spec import Workload
from launchyard.training.telemetry.events import OnEvent


def finish_run(run: RunDir, recipe: Recipe, workload: Workload, *, completed: bool, on_event: OnEvent) -> None:
    """Rank 0 only. The curve always; the weights when the run has completed and the recipe asks for them."""
    draw_curve(run, workload.name)
    if not completed:
        return
    if recipe.checkpoint.export:
        export_weights(run)
        on_event(EXPORTED, folder=WEIGHTS)


def draw_curve(run: RunDir, name: str) -> None:
    train = Course()
    for row in run.rows(STEPS):
        train.add(float(row["step"]), float(row["loss"]))
    validation = [(float(row["step"]), float(row["loss"])) for row in run.rows(VALIDATION) if is_of_set(row)]
    run.write_text(LOSS_CURVE, loss_svg(train.points, validation, title=f"{name}: loss, nats per token"))


def export_weights(run: RunDir) -> None:
    """The newest checkpoint's weights as an HF directory, a tensor at a time."""
    from launchyard.model.text.companions import read_companions
    from launchyard.model.weights.hf_export import save_hf
    from launchyard.model.weights.load import open_weights

    config, weights = open_weights(_newest(run))
    save_hf(weights, config, run.path(WEIGHTS), companions=read_companions(run.path(TOKENIZER_FOLDER)))


def _newest(run: RunDir) -> str:
    step = newest_checkpoint(run)
    assert step is not None, "a run that has completed has saved"
    return run.path(run.checkpoint_dir(step))
