"""Is there somebody to tell, and something to tell of? The section `notify`, checked before anything is queued."""

from __future__ import annotations

from launchyard.errors import RecipeErrors
from launchyard.host.environment import variable
from launchyard.launcher.recipe.hints import nearest
from launchyard.launcher.recipe.load import LoadedRecipe
from launchyard.training.notify.section import url_problem

METRICS = ("loss", "grad_norm", "lr", "tokens_seen", "tokens_per_second", "step_seconds", "validation_loss")


def check_notify(loaded: LoadedRecipe, *, from_here: bool) -> None:
    """RecipeErrors for a variable that is not set here, and a figure that no run without own code has.

    from_here: the job has the variables of this shell.
    """
    config = loaded.recipe.notify
    if config is None:
        return
    problems = []
    if config.webhook_env is not None and from_here:
        url = variable(config.webhook_env)
        where = f"{loaded.origin('notify.webhook_env')}: notify.webhook_env: {config.webhook_env}"
        if not url:
            problems.append(f"{where} is not set; export it where you launch")
        elif problem := url_problem(url):
            problems.append(f"{where} {problem}")
    metric = None if config.threshold is None else config.threshold.metric
    if metric is not None and metric not in METRICS and loaded.recipe.code is None:
        near = f"; did you mean {meant}?" if (meant := nearest(metric, list(METRICS))) else ""
        where = f"{loaded.origin('notify.threshold.metric')}: notify.threshold.metric"
        problems.append(
            f"{where}: {metric}: no such figure{near}; allowed: {', '.join(METRICS)}, or one of your own code"
        )
    if "threshold" in config.on and config.threshold is None and "on" in config.model_fields_set:
        problems.append(
            f"{loaded.origin('notify.on')}: notify.on: threshold needs notify.threshold: metric, below or above"
        )
    if problems:
        raise RecipeErrors(problems)
