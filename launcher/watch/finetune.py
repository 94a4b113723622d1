"""Finetuning from Python: `from launchyard import finetune`."""

from __future__ import annotations

import os
from collections.abc import Mapping

from launchyard.errors import LaunchError, user_errors
from launchyard.launcher.backends.section import FIRST
from launchyard.launcher.submit.finetune import finetune_keys, finetune_recipe
from launchyard.launcher.submit.launch import NewFolder, Request, check_free, make_ready, submit
from launchyard.launcher.submit.room import check_room
from launchyard.launcher.watch.follow import follow


def finetune(
    model: str,
    data: str | os.PathLike[str],
    *,
    method: str = "lora",
    keys: Mapping[str, object] | None = None,
    cluster: str = FIRST,
) -> str:
    """Finetunes a model and waits for the end; returns the run directory, which `load` takes.

    model: a folder, a file, a run or a name of the hub. data: file, folder or glob of rows.
    method: lora, qlora, dora, adapter, adapter-v2, full; or dpo, whose data are pairs.
    keys: keys of the recipe, such as {"train.max_steps": 100}. Raises UserError for mistakes, LaunchError where the
    run does not complete.
    """
    with user_errors():
        recipe = finetune_recipe(method)
        made = finetune_keys(model, [os.fspath(data)], keys or {})
    ready = make_ready(Request(recipe, cluster, made))
    check_free(ready.run)
    check_room(ready.plan, ready.run, where="run")
    ready, job = submit(ready, NewFolder(ready.run), report=print)
    if follow(ready.run, job=job):
        raise LaunchError(f"{ready.run.url} has not completed", hint=f"launch why {ready.plan.run_id}")
    return ready.run.url
