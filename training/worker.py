"""`python -m training.worker RUN_URL`, one process a rank under torchrun: the composition root.

Reads what the launcher wrote into the run directory, trains, and leaves its outcome there. Exit codes say nothing:
torchrun loses them. Imports torch only once its output goes to the run's logs.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import socket
import sys
import time
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psutil
import yaml

from model import files, store
from model.shards import CorruptError
from training.appender import Appender
from training.config import Recipe, Storage, Workload, apply_overrides, count_steps, cut_batch
from training.distributed import World, die_with_parent, read_world
from training.events import Events, SaveEvents, StoreEvents
from training.metrics import PhaseClock
from training.rundir import OutcomeRecord, RunDir
from training.showing import serve_metrics
from training.stop import StopFlag
from training.watchdog import Limits, PulseWriter, answer_with_stacks

if TYPE_CHECKING:
    from training.checkpoint import Checkpointer
    from training.loop import Parts
    from training.state import TrainState

# Errors that another try would only repeat.
FATAL = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    ImportError,
    NotImplementedError,
    FileNotFoundError,
    CorruptError,
)
HURRIED = ("preempted", "time limit", "terminated")  # ends for which the node may be gone in a moment
LEAVE_SECONDS = {True: 5.0, False: 25.0}  # in a hurry or not, for trackers and a last scrape; less than agents wait
FAREWELL_SECONDS = 20.0  # patience with a store for the last words of a rank that fails, each
SEEN_NAMES, SEEN_SECONDS = {"NonFiniteError"}, 5.0  # errors that an alert waits for, and how long they wait for it
FATAL_NAMES = {"NonFiniteError", "NoValidCheckpointError", "FencedError"}


@dataclass
class Progress:
    """How far this process has come, and what must be kept of that should it fail."""

    state: TrainState | None = None
    pulse: PulseWriter | None = None
    exporter: Any = None
    rows: list[Any] = field(default_factory=list)  # all that has a `flush`


def main(argv: list[str]) -> int:
    run, world = RunDir(argv[1]), read_world()
    die_with_parent()
    redirect_output(run, world)
    flag = StopFlag(world.scratch, world.job_end)
    flag.install()
    progress = Progress()
    try:
        work(run, world, flag, progress)
    except BaseException as error:
        traceback.print_exception(error)
        if progress.pulse is not None:  # its last words may take longer than a step
            progress.pulse.enter("checkpoint_blocking", time.monotonic(), waiting=False)
        with files.patience(FAREWELL_SECONDS):
            record_error(run, world, error, progress.state.step if progress.state else None)
            keep_rows(progress)
        if type(error).__name__ in SEEN_NAMES and progress.exporter is not None:
            progress.exporter.last_scrape(SEEN_SECONDS)
        return 1
    return 0


def redirect_output(run: RunDir, world: World) -> None:
    """From here on everything this process prints lands in its own log."""
    name = f"{run.attempt_dir(world.attempt)}/logs/rank-{world.rank:05d}.log"
    if not run.local:
        if world.scratch is None:
            return
        name = f"{world.scratch}/rank-{world.rank:05d}.log"
    path = run.path(name) if run.local else name
    os.makedirs(os.path.dirname(path), exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)


def record_error(run: RunDir, world: World, error: BaseException, step: int | None) -> None:
    """What ended this rank, for `launch why`; where that cannot be written, its log has to do."""
    record = {
        "rank": world.rank,
        "host": world.host,
        "type": type(error).__name__,
        "message": str(error) or repr(error),
        "traceback": "".join(traceback.format_exception(error))[-20_000:],
        "step": step,
        "time": time.time(),
        "fatal": isinstance(error, FATAL) or type(error).__name__ in FATAL_NAMES,
    }
    try:
        run.write_error(world.attempt, world.rank, record)
    except OSError as failure:
        print(f"the error above could not be written to the run directory: {failure}")


def keep_rows(progress: Progress) -> None:
    """What can be kept of a failed attempt's rows. That they cannot is not what made it fail."""
    for rows in progress.rows:
        try:
            rows.flush(sync=True)
        except OSError as error:
            print(f"rows that are lost: {error}")


def read_run(run: RunDir, attempt: int) -> tuple[Recipe, Workload]:
    """The recipe with the attempt's overrides, and the frozen part of the plan."""
    raw = yaml.safe_load(run.read_text("recipe.yaml"))
    overrides: dict[str, Any] = {}
    if attempt in run.attempts():  # else started by hand, without a launcher
        job = run.job(attempt)
        overrides = {**job.overrides, "train.device": job.device}  # what was planned for, and nothing else in silence
    recipe = Recipe.model_validate(apply_overrides(raw, overrides))
    return recipe, Workload.model_validate(run.read_json("plan.json"))


def recipe_hash(recipe: Recipe) -> str:
    """Changes with what decides the weights, and not with where or in how many pieces a run is made."""
    deciding = recipe.model_dump(mode="json", include={"model", "data", "train", "optimizer", "schedule"})
    for where in ("micro_batch_size", "device"):
        deciding["train"].pop(where)
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]


def work(run: RunDir, world: World, flag: StopFlag, progress: Progress) -> None:
    files.set_patience(Storage().retry_seconds)  # until the plan says what the place has chosen
    recipe, workload = read_run(run, world.attempt)
    files.set_patience(workload.storage.retry_seconds)
    on_event = Events(run, world)
    progress.rows.append(on_event)
    born = psutil.Process().create_time()
    on_event("process started", rank=world.rank, host=socket.gethostname(), pid=os.getpid(), born=born)
    pulse = give_signs(world, recipe)
    progress.pulse = pulse
    clock = PhaseClock(started=psutil.Process().create_time(), witness=pulse)
    parts, resumed = compose(run, world, recipe, workload, flag, on_event, clock)
    progress.state, progress.exporter = parts.state, parts.exporter
    progress.rows += [rows for rows in (parts.rows, parts.validation_rows) if rows is not None]
    from training.loop import train

    on_event("started", step=parts.state.step, resumed=resumed, world_size=world.world_size, device=str(parts.device))
    if world.leads:
        sweep(parts.checkpointer, on_event)
    reason = train(parts)
    parts.clock.enter("checkpoint_blocking")  # what remains is to be written
    for rows in progress.rows:
        rows.flush(sync=True)
    if world.leads:
        conclude(run, parts, reason)
    leave(run, parts, pulse, reason)


def leave(run: RunDir, parts: Parts, pulse: PulseWriter | None, reason: str | None) -> None:
    """Last scrape, off the list of targets, gone: so no finished run looks like a lost one."""
    from training.distributed import disconnect, is_connected

    hurried, began = reason in HURRIED, time.monotonic()
    parts.exporter.state("finished")
    parts.recorder.close()
    if is_connected():
        with parts.clock.waits():
            disconnect()
    if pulse is not None:
        pulse.close()
    if not hurried:
        parts.exporter.last_scrape()
    if parts.exporter.url is not None:
        with contextlib.suppress(OSError):  # a store that is away: the outcome tells as well that there is nothing left
            run.remove_target(parts.world.attempt, parts.world.rank)
    parts.exporter.close()
    parts.recorder.wait(max(1.0, LEAVE_SECONDS[hurried] - (time.monotonic() - began)))


def sweep(checkpointer: Checkpointer, on_event: Events) -> None:
    """Remove what earlier attempts left uncommitted, as soon as it is on record that this one has started.

    A commit of theirs that comes after that record is known to be late, and its files need not be there.
    """
    try:
        on_event.flush(sync=True)
    except OSError as error:  # a full disk: training can wait for room, and the next start sweeps
        on_event("not swept", message=str(error))
        return
    checkpointer.sweep()


def conclude(run: RunDir, parts: Parts, reason: str | None) -> None:
    """Rank 0, with everything saved: curve, weights and sample, and last of all the outcome."""
    from training.finish import finish_run

    step = parts.state.step
    finish_run(run, parts.recipe, parts.workload, completed=reason is None, on_event=parts.on_event)
    parts.clock.total()
    parts.on_event("finished", step=step, seconds={k: round(v, 3) for k, v in parts.clock.seconds.items()})
    parts.on_event.flush(sync=True)
    loss = parts.state.validation_loss
    said = "" if loss is None else f", validation loss {loss:.4f}"
    done = f"{'all' if reason is None else 'stopped after'} {step} of {parts.max_steps} steps"
    if reason is not None and step == parts.max_steps:
        said = ", in the last validation"
    run.write_outcome(
        OutcomeRecord(
            outcome="completed" if reason is None else "stopped",
            reason=reason or "done",
            message=done + said,
            attempt=parts.world.attempt,
            step=step,
            checkpoint=run.checkpoint_dir(step) if step else None,
            time=time.time(),
        )
    )


def give_signs(world: World, recipe: Recipe) -> PulseWriter | None:
    """Let the agent of this node see what this worker does; without an agent nobody would look."""
    answer_with_stacks()
    if world.scratch is None:
        return None
    chosen = recipe.watchdog
    limits = Limits(
        step_seconds=chosen.step_seconds, slow_seconds=chosen.slow_seconds, patience=files.current_patience()
    )
    return PulseWriter(world.scratch, world.rank, limits if chosen.enabled else None)


def compose(
    run: RunDir,
    world: World,
    recipe: Recipe,
    workload: Workload,
    flag: StopFlag,
    on_event: Any,
    clock: PhaseClock,
) -> tuple[Parts, bool]:
    """Everything the loop needs, with the newest whole checkpoint loaded; and whether there was one."""
    exporter = serve_metrics(run, world, recipe)
    import torch

    from training.distributed import connect
    from training.loop import Meter, Parts
    from training.parallel import needs_sharding, time_collectives
    from training.showing import introduce, make_recorder

    device = choose_device(recipe, world)
    torch.manual_seed(recipe.train.seed)
    if needs_sharding(recipe.train, world.world_size):
        connect(world, device)
    store.watch(StoreEvents(run, on_event, exporter))
    rows, validation_rows = open_rows(run, world)
    checkpointer = open_checkpointer(
        run, world, recipe, workload, SaveEvents(on_event, exporter), rows, validation_rows, on_event
    )
    model, optimizer, state, resumed = load_state(recipe, workload, world, device, checkpointer, exporter)
    reader, held_out = open_readers(recipe, workload, world, on_event)
    if device.type == "cpu":
        time_collectives(model, clock.waits)
    max_steps = count_steps(recipe, workload.data.n_tokens)
    introduce(exporter, run, world, recipe, workload, max_steps=max_steps)
    recorder = make_recorder(
        run, world, recipe, workload, clock=clock, exporter=exporter, on_event=on_event, device=device, rows=rows,
        cache=reader.cache, start_step=state.step,
    )  # fmt: skip
    parts = Parts(
        world=world,
        recipe=recipe,
        workload=workload,
        batch=cut_batch(recipe.train, world.world_size),
        max_steps=max_steps,
        device=device,
        model=model,
        optimizer=optimizer,
        state=state,
        reader=reader,
        held_out=held_out,
        checkpointer=checkpointer,
        flag=flag,
        clock=clock,
        exporter=exporter,
        rows=rows,
        validation_rows=validation_rows,
        on_event=on_event,
        meter=Meter(),
        recorder=recorder,
    )
    return parts, resumed


def open_rows(run: RunDir, world: World) -> tuple[Appender | None, Appender | None]:
    """Where rank 0 writes its rows: of steps, and of validations."""
    if not world.leads:
        return None, None
    every = 0.0 if run.local else 10.0
    steps, validation = (
        Appender(run, f"metrics/{kind}-{world.attempt:04d}", flush_seconds=every) for kind in ("steps", "validation")
    )
    return steps, validation


def open_checkpointer(
    run: RunDir, world: World, recipe: Recipe, workload: Workload, on_event: Any, *appenders: Any
) -> Any:
    import torch

    from training.checkpoint import Checkpointer, Identity

    def before_commit() -> None:  # rows first: a checkpoint must never be ahead of the history
        for appender in appenders:
            if appender is not None:
                appender.flush(sync=True)

    identity = Identity(
        model=workload.model.model_dump(mode="json"),
        data_digest=workload.data.digest,
        recipe_hash=recipe_hash(recipe),
        versions={"torch": torch.__version__, "python": sys.version.split()[0]},
    )
    return Checkpointer(
        run,
        world,
        identity,
        keep=recipe.checkpoint.keep,
        background=recipe.checkpoint.async_save,
        on_event=on_event,
        before_commit=before_commit,
    )


def choose_device(recipe: Recipe, world: World) -> Any:
    """This worker's device; asking for a GPU that is not there is an error, never a quiet CPU."""
    import torch

    wanted = recipe.train.device
    if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available()):
        if world.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"worker {world.local_rank} of {world.host} found {torch.cuda.device_count()} GPUs; "
                "ask for fewer with --gpus-per-node, or for the CPU with train.device=cpu"
            )
        torch.cuda.set_device(world.local_rank)
        return torch.device("cuda", world.local_rank)
    return torch.device("cpu")


def load_state(
    recipe: Recipe, workload: Workload, world: World, device: Any, checkpointer: Any, exporter: Any
) -> tuple[Any, Any, Any, bool]:
    """Model, optimizer and counters: first weights, then the newest checkpoint over them if there is one."""
    from training.build import build_model, fill_weights
    from training.distributed import from_rank_zero
    from training.optim import make_optimizer
    from training.state import TrainState, shards

    began = time.perf_counter()
    model = build_model(workload.model, recipe, world_size=world.world_size, device=device, fill=False)
    optimizer = make_optimizer(model, recipe.optimizer)
    if not from_rank_zero(bool(checkpointer.run.committed_steps()) if world.leads else None):
        fill_weights(model, workload.model, recipe)
        return model, optimizer, TrainState(), False
    manifest = checkpointer.load_newest(shards(model, optimizer))
    exporter.set("trainer_checkpoint_restore_duration_seconds", time.perf_counter() - began)
    return model, optimizer, TrainState.from_json(manifest.train_state), True


def open_readers(recipe: Recipe, workload: Workload, world: World, on_event: Any) -> tuple[Any, Any]:
    from training.data.cache import ChunkCache
    from training.data.store import TokenStore
    from training.data.tokens import TokenReader

    size, data = recipe.train.global_batch_size, recipe.data
    common: dict[str, Any] = {"seq_len": data.seq_len, "global_batch_size": size, "seed": data.seed}
    train, held = workload.data.train, workload.data.validation
    weights = [source.weight for source in train]
    cache = ChunkCache(
        workload.storage.cache,
        quota=workload.storage.cache_bytes,
        share=world.local_world_size,
        say=lambda text: on_event("data trouble", message=text),
    )
    stores = [TokenStore(source.folder, cache=cache) for source in train]
    for found in stores:
        if not found.verifiable:
            text = f"{found.folder} has no digests.json: only the sizes and headers of its chunks can be verified"
            on_event("data trouble", message=text)
    reader = TokenReader(stores, weights=weights, shuffle=data.shuffle, **common)
    if not held:
        return reader, None
    return reader, TokenReader([TokenStore(source.folder, cache=cache) for source in held], shuffle=False, **common)


if __name__ == "__main__":
    code = main(sys.argv)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all is on disk; torch's threads have been seen to abort a normal exit
