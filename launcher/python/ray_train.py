"""Our loop in the workers of a Ray Train that somebody else has: its process group, its restarts, its reports.

The run directory lies inside Ray's experiment directory, so the exact checkpoints are Ray's own, and none is copied.
Ray starts and ends the workers; what is trained, and how it goes on, is the run's.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from launchyard.errors import UserError
from launchyard.host.processes import wait_until
from launchyard.launcher.agent.owner import Owner
from launchyard.launcher.agent.ownership import newest_job
from launchyard.launcher.agent.signals import Signals
from launchyard.launcher.backends.base import Planned, judge_job, owner_alive
from launchyard.launcher.backends.section import FIRST
from launchyard.launcher.python.begin import begin_run, go_on_with_run
from launchyard.launcher.python.errors import python_errors
from launchyard.launcher.python.inside import attempt, ended
from launchyard.launcher.python.watching import TrainingRequests, watched
from launchyard.launcher.recipe.load import plain_mapping
from launchyard.run import layout
from launchyard.run.checkpoints import newest_checkpoint
from launchyard.run.lease import LEASE_SECONDS, Heartbeat
from launchyard.run.records import Job, OutcomeRecord, Shape
from launchyard.run.rundir import RunDir
from launchyard.storage.damage import JsonObject

if TYPE_CHECKING:
    from launchyard.training.distributed import World
    from launchyard.training.stop import StopFlag

RUN_FOLDER = "launchyard"  # in the experiment directory
REPORT_EVERY = 100  # steps; a report holds training up for up to 2 s, the interval at which Ray 2.60 fetches it
CONFIG_KEYS = ("recipe", "overrides", "report_every")
_URLS = {"local": "", "s3": "s3://", "gcs": "gs://"}  # by the type of Ray's file system
FREE_SECONDS = LEASE_SECONDS + 15.0


class PreemptedError(Exception):
    """Saved and stopped, for a preemption was announced; Ray's FailureConfig decides whether it goes on."""


def train_loop(config: Mapping[str, object]) -> None:
    """Trains a recipe in every worker of a TorchTrainer, and goes on where it was after any restart, to the bit.

    config: `recipe`, a bundled name, a path or URL that rank 0 can read, or the recipe as a mapping; `overrides`, keys
    on top of it, dotted; `report_every`, steps from one `ray.train.report` to the next (100), with the row of the
    step and the newest checkpoint, and one more at the end. Of its resources none count: Ray has given the workers.
    On restart, by FailureConfig or by a trainer of the same name and storage path, it goes on from the newest exact
    checkpoint, that of `ray.train.get_checkpoint()` or a newer one, on any number of workers.
    UserError and RecipeErrors for mistakes, and any error of training, on record before Ray sees it.
    """
    given = _Given.read(config)
    place = _Place.found()
    world = _world(place)
    job, problem = _from_rank_zero(lambda: _claim(given, place, world) if world.is_main else None)
    if problem is not None:
        raise problem
    reports = _Reports(place, world, given.report_every)
    if job is not None:
        _train(place, world, job, reports)
    else:
        reports.last()


# -- what was asked ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Given:
    """The train_loop_config."""

    recipe: str | Mapping[str, object]
    overrides: JsonObject
    report_every: int

    @classmethod
    def read(cls, config: Mapping[str, object]) -> _Given:
        """UserError for what is not as train_loop says."""
        if unknown := [key for key in config if key not in CONFIG_KEYS]:
            raise UserError(f"train_loop_config: {', '.join(unknown)}: unknown; it may hold {', '.join(CONFIG_KEYS)}")
        recipe = config.get("recipe")
        every = config.get("report_every", REPORT_EVERY)
        overrides = config.get("overrides") or {}
        if isinstance(recipe, os.PathLike):
            recipe = os.fspath(recipe)
        if not isinstance(recipe, str | Mapping):
            raise UserError("train_loop_config: recipe: missing; give a name, a path or a mapping")
        if not isinstance(every, int) or every < 1:
            raise UserError(f"train_loop_config: report_every: {every!r}; give a number of steps, 1 or more")
        if not isinstance(overrides, Mapping):
            raise UserError("train_loop_config: overrides: give a mapping, such as {'train.max_steps': 500}")
        return cls(recipe, plain_mapping(overrides, "overrides"), every)


# -- where Ray has put us ---------------------------------------------------------------------------------------------
class _FileSystem(Protocol):
    @property
    def type_name(self) -> str: ...


@dataclass(frozen=True)
class _Place:
    """The experiment in Ray's storage. folder: of the run, as Ray's file system names it; url: as we do."""

    name: str
    job: str
    files: _FileSystem
    folder: str
    url: str

    @classmethod
    def found(cls) -> _Place:
        """UserError for a storage that we cannot write to."""
        import ray
        import ray.train

        context = ray.train.get_context()
        storage = context.get_storage()
        kind = storage.storage_filesystem.type_name
        folder = f"{storage.experiment_fs_path}/{RUN_FOLDER}"
        if kind not in _URLS:
            raise UserError(
                f"RunConfig(storage_path=…): a file system of type {kind}; use a folder, s3:// or gs://",
            )
        job = str(ray.get_runtime_context().get_job_id())
        return cls(context.get_experiment_name(), job, storage.storage_filesystem, folder, f"{_URLS[kind]}{folder}")

    @property
    def run(self) -> RunDir:
        return RunDir(self.url)

    @property
    def owner(self) -> str:
        """The same for all workers that this trainer starts, one set after the other."""
        return f"ray-train {self.job} {self.name}"


def _world(place: _Place) -> World:
    """The ranks as Ray has set them; the attempt is not known yet. ValueError without a process group that will do."""
    import ray.train
    import torch
    from ray.train.torch import get_device

    from launchyard.training.distributed import World, check_group, is_connected

    context = ray.train.get_context()
    if not is_connected():
        raise UserError("there is no process group; use train_loop with a TorchTrainer")
    device: torch.device = get_device()
    check_group(context.get_world_size(), device.type)
    return World(
        rank=context.get_world_rank(),
        local_rank=device.index or 0,
        world_size=context.get_world_size(),
        node_rank=context.get_node_rank(),
        attempt=-1,
        scratch=None,
        job_end=None,
        host=socket.gethostname(),
        local_world_size=context.get_local_world_size(),
    )


def _from_rank_zero(make: Callable[[], Job | None]) -> tuple[Job | None, Exception | None]:
    """What rank 0 has made, or its error, on every rank."""
    from launchyard.training.distributed import from_rank_zero

    made: Job | None = None
    problem: Exception | None = None
    try:
        made = make()
    except Exception as error:
        problem = error
    text = None if problem is None else f"{type(problem).__name__}: {problem}"
    found, failed = from_rank_zero((made, text))
    return found, problem if problem is not None or failed is None else UserError(f"rank 0: {failed}")


# -- owning the run ---------------------------------------------------------------------------------------------------
def _claim(given: _Given, place: _Place, world: World) -> Job | None:
    """The next attempt of the run, which is made if there is none; None if it is complete."""
    import torch

    run = place.run
    on_gpu = torch.cuda.is_available()
    shape = _shape(world, "cuda" if on_gpu else "cpu")
    # Of several nodes with GPUs only this one can be asked for them; the workers check the rest.
    workers = world.local_world_size if on_gpu else world.world_size
    claimed: list[Job] = []

    def start(run: RunDir, plan: Planned, overrides: JsonObject) -> Job:
        claimed.append(_owner(run, place, shape, overrides).claim())
        return claimed[-1]

    with python_errors():
        if not run.exists(layout.PLAN):
            begin_run(run.url, given.recipe, given.overrides, workers=workers, start=start)
        else:
            _release(run, place)
            go_on_with_run(run, given.recipe, given.overrides, workers=workers, start=start)
    return claimed[-1] if claimed else None


def _shape(world: World, device: str) -> Shape:
    each = world.local_world_size
    nodes, left = divmod(world.world_size, each)
    facts = {"nnodes": nodes, "nproc_per_node": each} if not left else {"nnodes": 1, "nproc_per_node": world.world_size}
    return Shape.model_validate({**facts, "device": device})


def _owner(run: RunDir, place: _Place, shape: Shape, overrides: JsonObject) -> Owner:
    def run_nodes(job: Job, on_poll: Callable[[], None]) -> OutcomeRecord:
        raise NotImplementedError("Ray starts the workers")

    return Owner(run, FIRST, place.owner, shape, overrides, Signals(), run_nodes, judge_job, log=lambda text: None)


def _release(run: RunDir, place: _Place) -> None:
    """Makes the run free: Ray starts workers anew when those before are gone, which their heartbeat tells later."""
    job = newest_job(run)
    if job is None or run.outcome(job.attempt) is not None:
        return
    if job.job_id == place.owner:
        record = ended(run, job, "failed", "workers lost", "Ray Train has started its workers anew")
        run.write_outcome(record, of_run=True)
        return
    wait_until(lambda: not owner_alive(run, job), seconds=FREE_SECONDS, every=1.0)


# -- training ---------------------------------------------------------------------------------------------------------
def _train(place: _Place, world: World, job: Job, reports: _Reports) -> None:
    from launchyard.training.stop import StopFlag

    run = place.run
    world = replace(world, attempt=job.attempt)
    flag = StopFlag(None)
    try:
        with _watching(run, world, flag):
            attempt(run, world, flag, reports.step)
    except Exception as error:
        if world.is_main:
            from launchyard.training.worker import is_fatal

            what = f"{type(error).__name__}: {error}"
            record = ended(run, job, "failed", "error", what, fatal=is_fatal(error))
            with contextlib.suppress(OSError):
                run.write_outcome(record, of_run=True)
        raise
    reports.last()
    reason = _end(run, place, job) if world.is_main else None
    _, problem = _from_rank_zero(lambda: _refuse_preempted(reason))
    if problem is not None:
        raise problem


def _refuse_preempted(reason: str | None) -> None:
    if reason == "preempted":
        raise PreemptedError("a preemption was announced: saved, and stopped")


def _end(run: RunDir, place: _Place, job: Job) -> str:
    """Writes the outcome of the run; the reason for it."""
    record = run.outcome(job.attempt)
    assert record is not None, "rank 0 has written it"
    return _owner(run, place, job.shape, job.overrides).end(record).reason


@contextlib.contextmanager
def _watching(run: RunDir, world: World, flag: StopFlag) -> Iterator[None]:
    """Rank 0 beats for the run and hears what it is asked; all agree on it at the next step. A cancel saves, too: one
    worker that leaves at once would leave the others waiting."""
    if not world.is_main:
        yield
        return
    heartbeat = Heartbeat(run, world.attempt)

    def on_poll() -> None:
        heartbeat.beat()
        if heartbeat.superseded:
            flag.request("terminated")

    with watched(run, TrainingRequests(run, world.attempt, flag), on_poll):
        yield


class _Reports:
    """Reports to Ray, the same number on every rank: each of them waits for the others there."""

    def __init__(self, place: _Place, world: World, every: int) -> None:
        self._place = place
        self._is_main = world.is_main
        self._every = every
        self._row: JsonObject = {}
        self._sent: int | None = None

    def step(self, row: JsonObject) -> None:
        self._row = dict(row)
        if int(row["step"]) % self._every == 0:
            self._report()

    def last(self) -> None:
        """With the checkpoint of the last step, which is there by now."""
        self._report()

    def _report(self) -> None:
        import ray.train

        metrics = {key: value for key, value in self._row.items() if isinstance(value, int | float | str)}
        metrics["time"] = time.time()
        ray.train.report(
            metrics, checkpoint=self._newest(), checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD
        )

    def _newest(self) -> object:
        """On rank 0 the newest checkpoint if Ray does not know it yet: its own folder, to which all have written."""
        import ray.train

        if not self._is_main:
            return None
        step = newest_checkpoint(self._place.run)
        if step is None or step == self._sent:
            return None
        self._sent = step
        folder = f"{self._place.folder}/{layout.checkpoint_folder(step)}"
        return ray.train.Checkpoint(folder, self._place.files)
