"""The steps of a launch: recipe -> cluster -> data -> plan -> checks -> run directory -> backend -> follow.

Order matters: all mistakes of a user are found before anything is created.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import click

from launchyard.errors import (
    EXIT_DONE,
    LaunchError,
    MissingDataError,
    NothingRunsError,
    RecipeErrors,
    StartedError,
    UserError,
    user_errors,
)
from launchyard.host.interrupts import HeldInterrupt
from launchyard.launcher.backends.base import Planned, load_backend
from launchyard.launcher.backends.cluster import Cluster, load_cluster, reach_storage, recipe_defaults
from launchyard.launcher.backends.hardware import HostFacts, probe_hardware
from launchyard.launcher.backends.request import After
from launchyard.launcher.format import json_text
from launchyard.launcher.plan.plan import Plan, PlanError, PlannedData
from launchyard.launcher.plan.planner import make_plan
from launchyard.launcher.recipe.load import LoadedRecipe, read_recipe
from launchyard.launcher.recipe.notify import check_notify
from launchyard.launcher.recipe.own_code import OwnFile, with_own_code
from launchyard.launcher.runs.start_from import shape_of, with_found_files
from launchyard.launcher.submit import plan_text
from launchyard.launcher.submit.beside import beside_run, folders_beside, remove_beside
from launchyard.launcher.submit.code import CodeSnapshot, take_snapshot, with_own
from launchyard.launcher.submit.packages import check_packages
from launchyard.launcher.submit.room import check_room, with_room
from launchyard.model.config import ModelConfig
from launchyard.model.text.companions import write_companions
from launchyard.run import layout
from launchyard.run.frozen import content_digest
from launchyard.run.rundir import RunDir
from launchyard.storage import retry
from launchyard.storage.damage import JsonObject
from launchyard.storage.files import typed_path
from launchyard.storage.redact import is_text, plain_name, redact
from launchyard.training.own.frozen import write_frozen
from launchyard.training.recipe import Recipe
from launchyard.training.spec import DataSpec, TokenSource

if TYPE_CHECKING:
    from launchyard.launcher.data.resolve import Resolved
    from launchyard.run.records import Job
    from launchyard.training.recipe import Recipe


class Follow(Protocol):
    """Shows a run until it ends; the exit code of `launch`. That is launcher/watch, a layer above this one."""

    def __call__(self, run: RunDir, *, job: Job | None = None, brief: bool = False, presses: int = 0) -> int: ...


class Start(Protocol):
    """Makes a job own the next attempt of a run, as the `submit` of a backend does."""

    def __call__(self, run: RunDir, plan: Planned, overrides: JsonObject, /) -> Job: ...


@dataclass(frozen=True)
class Request:
    """The arguments of the command line. reshape: more keys, which depend on the recipe."""

    recipe: str | Mapping[str, object]
    cluster: str
    overrides: dict[str, Any]
    run_url: str | None = None
    reshape: Callable[[Recipe], dict[str, object]] | None = None


@dataclass(frozen=True)
class Ready:
    """A launch that could start now. Making it created nothing."""

    loaded: LoadedRecipe
    cluster: Cluster
    host: HostFacts
    data: Resolved
    init: ModelConfig | None
    after: After
    plan: Plan
    code: CodeSnapshot
    run: RunDir
    own: OwnFile | None = None


def make_ready(request: Request, *, dry_run: bool = False) -> Ready:
    """Everything up to the plan; UserError or RecipeErrors for mistakes. A dry run does without data not yet there."""
    from launchyard.launcher.runs.registry import new_run_id

    cluster = load_cluster(request.cluster)
    reach_storage(cluster)
    unchecked = read_recipe(request.recipe, defaults=recipe_defaults(cluster))
    loaded = unchecked.check(request.overrides)
    if request.reshape is not None:
        loaded = unchecked.check({**request.overrides, **request.reshape(loaded.recipe)})
    run_id = new_run_id(loaded.recipe.name)
    run = new_place(cluster, request.run_url, run_id)
    return ready_at(run, loaded, cluster, run_id=run_id, code=take_snapshot(Path.cwd()), dry_run=dry_run)


def new_place(cluster: Cluster, url: str | None, name: str) -> RunDir:
    """The folder of that name where runs of a cluster go, or the URL that is given with --run-url."""
    with user_errors("--run-url" if url else f"storage.url of cluster {cluster.name}"):
        run = RunDir(typed_path(url or f"{cluster.storage.url.rstrip('/')}/{name}"))
        if not is_text(run.url):
            raise ValueError(f"{plain_name(run.url)}: this name is not UTF-8, as all files of a run are; rename it")
        return run


def ready_at(
    run: RunDir, loaded: LoadedRecipe, cluster: Cluster, *, run_id: str, code: CodeSnapshot, dry_run: bool = False
) -> Ready:
    """A launch of this recipe with this id in this place, whose storage is reached already; mistakes as above."""
    loaded = with_found_files(loaded)
    recipe = loaded.recipe
    _check_name(loaded)
    check_notify(loaded, from_here=load_backend(cluster.scheduler).TRAITS.takes_environment)
    if cluster.container is None:  # else the workers have another Python
        check_packages(loaded)
    loaded, own = with_own_code(loaded, base=loaded.base, tries=cluster.container is None)
    init = shape_of(loaded)
    after = After(success=_first(loaded, cluster))
    host = with_room(probe_hardware(recipe, cluster), run)
    parts = {"cluster": cluster, "run_id": run_id, "run_url": run.url, "host": host, "init": init, "after": after}
    data, known = _data(loaded, own, lambda error: _with_plan_problems(error, loaded, parts), dry_run=dry_run)
    plan = _plan(loaded, data=known, **parts)
    return Ready(loaded, cluster, host, data, init, after, plan, with_own(code, own), run, own)


def with_turn(ready: Ready, job_id: str) -> Ready:
    """The same launch, to be started by its scheduler when that job is over, however it ends."""
    ready = replace(ready, after=ready.after.model_copy(update={"end": job_id}))
    return replace(ready, plan=_planned_again(ready, ready.data))


def _check_name(loaded: LoadedRecipe) -> None:
    from launchyard.launcher.runs.find import NEWEST

    name = loaded.recipe.name
    if name in NEWEST:
        problem = f"{loaded.origin('name')}: name: {name} means the newest run wherever a run is named; choose another"
        raise RecipeErrors([problem])


def _data(
    loaded: LoadedRecipe, own: OwnFile | None, all_problems: Callable[[UserError], RecipeErrors], *, dry_run: bool
) -> tuple[Resolved, PlannedData]:
    """Returns the data of a recipe. A dry run goes on if it is not there yet and nothing else is wrong."""
    from launchyard.launcher.data.own_batches import own_batches
    from launchyard.launcher.data.resolve import Resolved, resolve

    try:
        with user_errors():
            recipe = loaded.recipe
            if own is not None and own.makes_data:
                data = own_batches(recipe, base=loaded.base, digest=own.frozen)
                return data, planned(data)
            data = resolve(
                recipe.data,
                recipe.tokenizer,
                init_from=recipe.model.init_from,
                base=loaded.base,
                epochs=recipe.train.max_epochs,
                sets=recipe.validation.sets,
            )
    except UserError as error:
        problems = all_problems(error)
        if not dry_run or not isinstance(error, MissingDataError) or len(problems.problems) > 1:
            raise problems from error
        spec = _unknown(error.source)
        return Resolved((), None, spec), PlannedData(spec=spec, vocab_size=None, missing=str(error))
    return data, planned(data)


def _first(loaded: LoadedRecipe, cluster: Cluster) -> str | None:
    """The job that this launch has to wait for."""
    name = loaded.recipe.after
    if name is None or not load_backend(cluster.scheduler).TRAITS.waits_for_jobs:  # which the plan refuses
        return None
    from launchyard.launcher.submit.dependency import job_to_wait_for

    try:
        return job_to_wait_for(name, cluster)
    except UserError as error:
        raise RecipeErrors([f"{loaded.origin('after')}: {error}"], hint=error.hint) from error
    finally:
        reach_storage(cluster)  # that run may lie in another store


def _plan(loaded: LoadedRecipe, **parts: Any) -> Plan:
    """make_plan, with the place in the recipe of each problem."""
    try:
        return make_plan(loaded.recipe, **parts)
    except PlanError as error:
        raise RecipeErrors([_placed(loaded, key, what) for key, what in error.problems]) from error


def _placed(loaded: LoadedRecipe, key: str, what: str) -> str:
    return f"{key}: {what}" if key.startswith("--") else f"{loaded.origin(key)}: {key}: {what}"


def _with_plan_problems(error: UserError, loaded: LoadedRecipe, parts: dict[str, Any]) -> RecipeErrors:
    """Returns the error of the data together with all problems apart from the data."""
    keys = ("validation.sets", "data.source", "data.mixture", "data.validation", "tokenizer")
    key = next((name for name in keys if name in str(error)), "data")
    problems = [f"{loaded.origin(key)}: {error}"]
    try:
        _plan(loaded, data=PlannedData(spec=_unknown("?"), vocab_size=1), **parts)
    except RecipeErrors as others:
        problems += others.problems
    return RecipeErrors(problems, hint=error.hint)


def _unknown(folder: str) -> DataSpec:
    """Data of which nothing is known; it fits every recipe."""
    somewhere = (TokenSource(folder=folder, n_tokens=1),)
    return DataSpec(train=somewhere, validation=somewhere, tokenizer="?", digest="?")


def planned(data: Resolved) -> PlannedData:
    return PlannedData(spec=data.spec, vocab_size=data.vocab_size, prepared=data.prepared)


def submit(
    ready: Ready, made: NewFolder, *, report: Callable[[str], None], start: Start | None = None
) -> tuple[Ready, Any]:
    """Fills the run directory and hands it to the scheduler, or to `start`. Returns the frozen plan and the job.

    StartedError for a Ctrl-C while it is handed over, which is done all the same.
    """
    from launchyard.launcher.runs.registry import forget, register

    start = start or load_backend(ready.plan.scheduler).submit
    try:
        ready = prepare_data(ready)
        _report_left_out(ready.data, report)
        write_run(ready, made)
    except BaseException:
        made.discard()
        raise
    plan = ready.plan
    with HeldInterrupt() as interrupt:
        try:
            register(plan.run_id, plan.name, plan.run_url, store=plan.store)
            job = start(ready.run, plan, {})  # a job cannot be taken back: it comes last
        except (UserError, NothingRunsError):  # refused, nothing runs
            forget(plan.run_id)
            made.discard()
            raise
    report(f"✓ {'run':<8} {plan.run_id} · {redact(plan.run_url)}")
    if interrupt.pressed:
        raise StartedError(plan.run_id, job)
    return ready, job


def _report_left_out(data: Resolved, report: Callable[[str], None]) -> None:
    from launchyard.launcher.data.rows_shown import rows_left_out

    for source in data.spec.train:
        if source.instruct is not None and (note := rows_left_out(source.folder)):
            report(f"! {'note':<8} {note}; `launch inspect` of the recipe shows the rows")


def prepare_data(ready: Ready) -> Ready:
    """Tokenizes text that is not tokenized yet; the plan is made again from the result."""
    from launchyard.launcher.data.progress import preparing_line
    from launchyard.launcher.data.resolve import ensure_prepared

    if ready.data.prepared:
        return ready
    with user_errors():
        data = ensure_prepared(ready.data, on_progress=preparing_line(sys.stderr))
    plan = _planned_again(ready, data)
    code = with_own(take_snapshot(Path.cwd()), ready.own)  # that may have taken hours
    return replace(ready, data=data, plan=plan, code=code)


def _planned_again(ready: Ready, data: Resolved) -> Plan:
    return _plan(
        ready.loaded,
        cluster=ready.cluster,
        run_id=ready.plan.run_id,
        run_url=ready.plan.run_url,
        data=planned(data),
        host=ready.host,
        init=ready.init,
        after=ready.after,
    )


def planned_with(ready: Ready, recipe: Recipe) -> Plan:
    """The plan of the same launch with another recipe, of the same model and data. PlanError if there is none."""
    return make_plan(
        recipe,
        cluster=ready.cluster,
        run_id=ready.plan.run_id,
        run_url=ready.plan.run_url,
        data=planned(ready.data),
        host=ready.host,
        init=ready.init,
        after=ready.after,
    )


# -- the run directory -----------------------------------------------------------------------------------------------
def check_free(run: RunDir) -> None:
    """UserError if the run's URL is in use: a run that is alive, one to resume, or other files."""
    where = redact(run.url)
    if run.local and not os.path.isdir(run.url):
        if os.path.lexists(run.url):
            raise UserError(f"--run-url {where}: a file; it must be a new folder")
        return
    try:
        taken = run.exists(layout.PLAN) or bool(run.attempts())
        empty = not run.listdir("")
    except (ImportError, OSError, ValueError) as error:  # errors of fsspec for protocols and stores
        raise _kind_of(error)(f"--run-url {where}: cannot be reached: {redact(str(error))}") from error
    if taken:
        raise UserError(_taken(run, where))
    if not empty:
        raise UserError(f"--run-url {where}: not empty, and not a run; it must be a new folder")


def _taken(run: RunDir, where: str) -> str:
    from launchyard.launcher.agent.ownership import newest_job
    from launchyard.launcher.backends.base import owner_alive

    job = newest_job(run)
    if job is not None and owner_alive(run, job):
        return f"--run-url {where}: this run is alive: attempt {job.attempt}, process {job.pid} on {job.host}"
    return f"--run-url {where}: holds a run already; go on with it: launch resume {where}, or choose another place"


# All that a launch itself writes into a run directory, but for tokenizer/.
WRITTEN = (layout.CODE, layout.RECIPE, layout.PLAN, layout.JOB_LOG)
DISCARD_SECONDS = 2.0  # retry budget of a store that has failed before


class NewFolder:
    """The run's folder, made now to test that it can be; removed again if the launch fails before the job."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._made = list[Path]()
        self.ours = False  # we have begun to write; no other launch may
        if not run.local:
            return
        missing = [path for path in (Path(run.url), *Path(run.url).parents) if not path.is_dir()]
        try:
            for path in reversed(missing):
                path.mkdir()
                self._made.append(path)
            if not os.access(run.url, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            self.discard()
            raise UserError(
                f"--run-url {run.url}: cannot be written: {(error.strerror or str(error)).lower()}",
                hint="choose another place with --run-url, or the storage of a cluster file",
            ) from error

    def discard(self) -> None:
        """Removes the files that a launch writes and the folders made for it; other files stay."""
        for name in WRITTEN if self.ours else ():
            with contextlib.suppress(OSError), retry.retry_budget(DISCARD_SECONDS):
                self._run.remove(name)
        if self.ours:
            with contextlib.suppress(OSError), retry.retry_budget(DISCARD_SECONDS):
                remove_beside(self._run)
        for name in folders_beside(self._run) if self._run.local else ():
            with contextlib.suppress(OSError):
                os.rmdir(self._run.path(name))
        for path in reversed(self._made):
            with contextlib.suppress(OSError):
                path.rmdir()
        self._made.clear()


def write_run(ready: Ready, made: NewFolder) -> None:
    """Freezes the run: code.json first, create-only; plan.json last, which makes it a run."""
    run = ready.run
    plan = ready.plan
    with user_errors():
        companions = beside_run(ready.loaded.recipe, plan.data, base=ready.loaded.base)
    with _write_errors(run):
        try:
            run.create_json(layout.CODE, ready.code.model_dump())
            made.ours = True
        except FileExistsError as error:
            raise UserError(f"--run-url {redact(run.url)}: another launch is writing there right now") from error
        recipe = f"# From {ready.loaded.source}.\n{plan_text.recipe_text(ready.loaded.raw)}"
        run.write_text(layout.RECIPE, recipe)
        write_companions(companions, run.path(layout.TOKENIZER_FOLDER))
        if ready.own is not None:
            write_frozen(run, ready.own.source)
        facts = {**plan.model_dump(mode="json"), layout.RECIPE_DIGEST: content_digest(recipe.encode())}
        run.write_json(layout.PLAN, facts, sync=True)


@contextlib.contextmanager
def _write_errors(run: RunDir) -> Iterator[None]:
    try:
        yield
    except LaunchError:
        raise
    except OSError as error:
        problem = redact(str(error.strerror or error))
        raise _kind_of(error)(f"--run-url {redact(run.url)}: cannot be written: {problem}") from error


def _kind_of(error: Exception) -> type[LaunchError]:
    """LaunchError for a store that does not answer; UserError for one that refuses, a likely mistake of the user."""
    from launchyard.storage.errors import RefusedError, StoreError

    return LaunchError if isinstance(error, StoreError) and not isinstance(error, RefusedError) else UserError


# -- the command -----------------------------------------------------------------------------------------------------
def launch(request: Request, *, dry_run: bool, detach: bool | None, as_json: bool, follow: Follow) -> int:
    """The body of `launch [RECIPE]`; returns its exit code. `follow` shows the run until it ends."""
    ready = make_ready(request, dry_run=dry_run)
    loaded = ready.loaded
    plan = ready.plan
    if dry_run:
        if as_json:
            click.echo(plan_text.as_json(plan, loaded.raw, ready.code, loaded.source))
        else:
            click.echo("\n".join(plan_text.full(plan, loaded.recipe, loaded.raw, ready.code, loaded.source)))
        return EXIT_DONE

    def report(line: str) -> None:
        if not as_json:
            click.echo(line)

    check_free(ready.run)
    check_room(plan, ready.run, where="--run-url")
    made = NewFolder(ready.run)
    for line in plan_text.brief(plan, loaded.recipe, ready.code):
        report(line)
    if detach is None:
        detach = as_json or load_backend(plan.scheduler).TRAITS.scheduled
    try:
        ready, job = submit(ready, made, report=report)
    except StartedError as error:
        if detach:
            raise
        return follow(ready.run, job=cast("Job", error.job), presses=1)
    if not detach:
        return follow(ready.run, job=job)
    if as_json:
        facts = {"run_id": plan.run_id, "run_url": plan.run_url, "job": job.model_dump(mode="json")}
        click.echo(json_text({**facts, "plan": ready.plan.model_dump(mode="json")}))
    for line in next_commands(plan.run_id):
        report(line)
    return EXIT_DONE


def next_commands(run_id: str) -> list[str]:
    """The next commands, ready to be copied."""
    return [
        f"  follow   launch logs -f {run_id:<24}  stop     launch stop {run_id}",
        f"  status   launch status {run_id:<24}   why      launch why {run_id}",
    ]
