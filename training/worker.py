"""`python -m launchyard.training.worker RUN_URL`, one process per rank under torchrun: the composition root.

Reads the launcher's files in the run directory, trains, and writes its outcome there. Exit codes carry nothing:
torchrun loses them. Imports torch only once its output goes to the run's logs.
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import IO, TYPE_CHECKING

from launchyard.host.collector import uncollected
from launchyard.host.processes import born_at, die_with_parent
from launchyard.run import events, layout
from launchyard.run.append import Appender
from launchyard.run.frozen import check_frozen
from launchyard.run.own_code import OtherCodeError, what_differs
from launchyard.run.records import OutcomeRecord
from launchyard.run.rundir import RunDir
from launchyard.storage import retry
from launchyard.storage.errors import CorruptError, DamagedError, DeniedError
from launchyard.storage.redact import redact
from launchyard.training.distributed import World, read_world
from launchyard.training.own.load import OwnCodeError
from launchyard.training.own.values import RunEnd
from launchyard.training.recipe import Recipe, recipe_of
from launchyard.training.spec import Storage, read_workload
from launchyard.training.stop import StopFlag
from launchyard.training.telemetry.environment import record_environment
from launchyard.training.telemetry.events import Events, StoreEvents
from launchyard.training.telemetry.exporter import Exporter
from launchyard.training.telemetry.heartbeat import Limits, PulseWriter, dump_stacks_on_signal
from launchyard.training.telemetry.instruments import Instruments, OnStep
from launchyard.training.telemetry.phases import PhaseClock
from launchyard.training.telemetry.telemetry import serve_metrics

if TYPE_CHECKING:
    from launchyard.training.checkpoint.checkpointer import Checkpointer
    from launchyard.training.checkpoint.cleaning import Cleaner
    from launchyard.training.checkpoint.state import TrainState
    from launchyard.training.loop.parts import Parts
    from launchyard.training.telemetry.telemetry import Telemetry
from launchyard.training.compose import compose

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
    DeniedError,
)
HURRIED = ("preempted", "time limit", "terminated")  # ends for which the node may be gone in a moment
LEAVE_SECONDS = {True: 5.0, False: 25.0}  # in a hurry or not, for trackers and a last scrape; less than agents wait
PHASES_SECONDS = 2.0  # retry budget of a write that nothing depends on
LAST_WRITE_SECONDS = 20.0  # retry budget for each of the last writes of a rank that fails
ALERTED_ERRORS = {"NonFiniteError"}  # errors that an alert waits for
ALERT_SCRAPE_SECONDS = 5.0  # and how long they wait for it
FATAL_NAMES = {"NonFiniteError", "UnstableError", "NoValidCheckpointError", "FencedError"}


@dataclass(frozen=True)
class Surroundings:
    """The program that a worker is part of, if it is no process of its own. `log`: its output, None for no log."""

    log: IO[str] | None = None
    on_step: OnStep | None = None  # called with the row of each step, on every rank
    connected: bool = False  # the process group is the program's own, and stays


@dataclass
class WorkerState:
    """The objects of this process that its last writes need should it fail."""

    state: TrainState | None = None
    pulse: PulseWriter | None = None
    exporter: Exporter | None = None
    telemetry: Telemetry | None = None
    checkpointer: Checkpointer | None = None
    rows: list[Appender | Events] = field(default_factory=list)
    unsubscribe: Callable[[], None] | None = None

    def close(self) -> None:
        """Leaves nothing of a worker behind in a process that goes on. All of it may be closed already."""
        if self.unsubscribe is not None:
            self.unsubscribe()
            self.unsubscribe = None
        if self.telemetry is not None:
            self.telemetry.recorder.close()
        if self.exporter is not None:
            self.exporter.close()
            self.exporter = None


def main(argv: list[str]) -> int:
    run = RunDir(argv[1])
    world = read_world()
    die_with_parent()
    redirect_output(run, world)
    flag = StopFlag(world.scratch, world.job_end)
    flag.install()
    progress = WorkerState()
    try:
        work(run, world, flag, progress)
    except BaseException as error:
        traceback.print_exception(error)
        if progress.pulse is not None:  # its last writes may take longer than a step
            progress.pulse.enter("checkpoint_blocking", time.monotonic(), waiting=False)
        with retry.retry_budget(LAST_WRITE_SECONDS):
            record_error(run, world, error, progress.state.step if progress.state else None)
            keep_rows(progress)
        if type(error).__name__ in ALERTED_ERRORS and progress.exporter is not None:
            progress.exporter.last_scrape(ALERT_SCRAPE_SECONDS)
        return 1
    return 0


def redirect_output(run: RunDir, world: World) -> None:
    """From here on everything this process prints lands in its own log."""
    name = f"{layout.logs_folder(world.attempt)}/{layout.rank_log(world.rank)}"
    if not run.local:
        if world.scratch is None:
            return
        name = f"{world.scratch}/{layout.rank_log(world.rank)}"
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
    """Writes the error that ended this rank, for `launch why`; if that fails, it is only in the log."""
    record = {
        "rank": world.rank,
        "host": world.host,
        "type": type(error).__name__,
        "message": str(error) or repr(error),
        "traceback": "".join(traceback.format_exception(error))[-20_000:],
        "step": step,
        "time": time.time(),
        "fatal": is_fatal(error),
    }
    try:
        run.write_error(world.attempt, world.rank, record)
    except OSError as failure:
        print(f"the error above could not be written to the run directory: {failure}")


def is_fatal(error: BaseException) -> bool:
    """Returns True if another try would end the same way; a file that is damaged now may be restored by then."""
    if isinstance(error, DamagedError):
        return False
    if isinstance(error, OwnCodeError):  # its bugs come again; a store or a device may not fail the next time
        return not isinstance(error.__cause__, OSError | RuntimeError)
    return isinstance(error, FATAL) or type(error).__name__ in FATAL_NAMES


def keep_rows(progress: WorkerState) -> None:
    """Writes the remaining rows of a failed attempt. An error here is not the cause of the failure."""
    for rows in progress.rows:
        try:
            rows.flush(sync=True)
        except OSError as error:
            print(f"rows that are lost: {error}")


def work(
    run: RunDir, world: World, flag: StopFlag, progress: WorkerState, around: Surroundings | None = None
) -> str | None:
    """Trains to the end of this attempt; the reason for which it stopped before the run's last step."""
    retry.set_retry_budget(Storage().retry_seconds)  # until the plan is read, with the value of the cluster
    if difference := what_differs(run):
        raise OtherCodeError(difference)
    check_frozen(run)
    recipe = recipe_of(run, world.attempt)
    workload = read_workload(run)
    retry.set_retry_budget(workload.storage.retry_seconds)
    on_event = Events(run, world, log=sys.stdout if around is None else around.log)
    progress.rows.append(on_event)
    began = time.time()
    born = born_at(os.getpid()) or began
    on_event(events.PROCESS_STARTED, rank=world.rank, host=socket.gethostname(), pid=os.getpid(), born=born)
    pulse = open_pulse(world, recipe) if around is None else None
    progress.pulse = pulse
    clock = PhaseClock(started=born if around is None else began, observer=pulse)
    exporter = serve_metrics(run, world, recipe)
    progress.exporter = exporter
    instruments = Instruments(clock, exporter, on_event, None if around is None else around.on_step)
    progress.unsubscribe = retry.subscribe(StoreEvents(run, on_event, exporter))
    with uncollected(lasting=around is None):
        parts, source = compose(run, world, recipe, workload, flag, instruments)
    progress.state = parts.learner.state
    progress.telemetry = parts.telemetry
    progress.checkpointer = parts.checkpointer
    progress.rows += parts.telemetry.rows.appenders
    from launchyard.training.loop.train import train

    device = str(parts.context.device)
    facts = {"resumed": source is not None, **({} if source is None else {"source": source})}
    on_event(events.STARTED, step=parts.learner.state.step, **facts, world_size=world.world_size, device=device)
    if world.is_main:
        parts.checkpointer.clean_aside(partial(begun, run, world, parts.checkpointer.cleaner, on_event))
    reason = train(parts)
    clock.enter("checkpoint_blocking")  # only writes remain
    for rows in progress.rows:
        rows.flush(sync=True)
    parts.profiler.wait(LEAVE_SECONDS[reason in HURRIED])
    keep_phases(run, world, clock)
    if world.is_main:
        finish_attempt(run, parts, reason)
    leave(run, parts, pulse, reason, connected=around is not None and around.connected)
    return reason


def keep_phases(run: RunDir, world: World, clock: PhaseClock) -> None:
    """Writes this rank's time by phase, beside that of the others; its loss is no reason to fail."""
    clock.total()
    seconds = {phase: round(spent, 3) for phase, spent in clock.seconds.items()}
    if world.world_size > 1:
        with contextlib.suppress(OSError), retry.retry_budget(PHASES_SECONDS):
            run.write_json(layout.phases(world.attempt, world.rank), {"rank": world.rank, "seconds": seconds})


def leave(run: RunDir, parts: Parts, pulse: PulseWriter | None, reason: str | None, *, connected: bool = False) -> None:
    """Last scrape, removal from the targets, exit: so no finished run looks like a lost one.

    connected: the ranks stay connected.
    """
    from launchyard.training.distributed import disconnect, is_connected

    telemetry = parts.telemetry
    world = parts.context.world
    hurried = reason in HURRIED
    began = time.monotonic()
    telemetry.finished()
    if is_connected() and not connected:
        with telemetry.clock.waits():
            disconnect()
    if pulse is not None:
        pulse.close()
    if not hurried:
        telemetry.exporter.last_scrape()
    if telemetry.exporter.enabled:
        with contextlib.suppress(OSError):  # an unreachable store: the outcome shows as well that no worker is left
            run.remove_target(world.attempt, world.rank)
    telemetry.exporter.close()
    telemetry.recorder.wait(max(1.0, LEAVE_SECONDS[hurried] - (time.monotonic() - began)))


def begun(run: RunDir, world: World, cleaner: Cleaner, on_event: Events) -> None:
    """Aside, while the first steps are done: what must follow the record of the start, and no step waits for."""
    sweep(cleaner, on_event)
    with retry.retry_budget(LAST_WRITE_SECONDS):
        record_environment(run, world.attempt, on_event)


def sweep(cleaner: Cleaner, on_event: Events) -> None:
    """Remove uncommitted files of earlier attempts, as soon as it is on record that this one has started.

    A commit of theirs that comes after that record is known to be late, and its files need not be there.
    """
    try:
        on_event.flush(sync=True)
    except OSError as error:  # a full disk, a store that fails: the first save sweeps
        on_event(events.NOT_SWEPT, message=str(error))
        return
    cleaner.sweep()


def finish_attempt(run: RunDir, parts: Parts, reason: str | None) -> None:
    """Rank 0, with everything saved: curve, weights and sample, and last of all the outcome."""
    from launchyard.training.artifacts import finish_run
    from launchyard.training.loop.boundary import early_end

    context = parts.context
    state = parts.learner.state
    telemetry = parts.telemetry
    step = state.step
    clock = telemetry.clock
    finish_run(run, context.recipe, context.workload, completed=reason is None, on_event=telemetry.events)
    clock.total()
    telemetry.events(events.FINISHED, step=step, seconds={k: round(v, 3) for k, v in clock.seconds.items()})
    telemetry.events.flush(sync=True)
    loss = state.validation_loss
    detail = "" if loss is None else f", validation loss {loss:.4f}"
    done = f"{'all' if reason is None else 'stopped after'} {step} of {context.max_steps} steps"
    if reason is None and (why := early_end(parts)) is not None:
        done = f"ended early after {step} of {context.max_steps} steps, for {why}"
    if reason is not None and step == context.max_steps:
        detail = ", in the last validation"
    record = OutcomeRecord(
        outcome="completed" if reason is None else "stopped",
        reason=reason or "done",
        message=done + detail,
        attempt=context.world.attempt,
        step=step,
        checkpoint=run.checkpoint_dir(step) if step else None,
        time=time.time(),
    )
    if parts.hooks is not None:
        parts.hooks.on_end(end_of(run, parts, record))
    run.write_outcome(record)


def end_of(run: RunDir, parts: Parts, record: OutcomeRecord) -> RunEnd:
    """The same for the user's own code."""
    return RunEnd(
        run_id=parts.context.workload.run_id,
        name=parts.context.workload.name,
        url=redact(run.url),
        outcome=record.outcome,
        reason=record.reason,
        step=parts.learner.state.step,
        max_steps=parts.context.max_steps,
        validation_loss=parts.learner.state.validation_loss,
        checkpoint=record.checkpoint,
    )


def open_pulse(world: World, recipe: Recipe) -> PulseWriter | None:
    """Opens the file in which this node's agent sees the state of this worker; None without an agent."""
    dump_stacks_on_signal()
    if world.scratch is None:
        return None
    chosen = recipe.watchdog
    limits = Limits(
        step_seconds=chosen.step_seconds, slow_seconds=chosen.slow_seconds, retry_seconds=retry.current_retry_budget()
    )
    return PulseWriter(world.scratch, world.rank, limits if chosen.enabled else None)


if __name__ == "__main__":
    code = main(sys.argv)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all is on disk; torch's threads have been seen to abort a normal exit
