"""The agent's watch over workers that give no sign of life any more: names the hung ranks, with the stacks of all.

Reads the signs that workers leave (training/telemetry/heartbeat.py); ends nothing itself. A worker that is stopped,
or holds the interpreter's lock for ever, cannot report itself, so it is checked from here.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from launchyard.host.processes import started_at, wait_until
from launchyard.run import layout
from launchyard.run.rundir import RunDir
from launchyard.training.telemetry.heartbeat import STACKS, HangReport, Pulse, find_hang, read_pulses

HUNG = "HungError"  # type of the error that is left in the run directory
CHECK_SECONDS = 1.0
STOPPED_SECONDS = 20.0  # from a STOP signal on; a debugger or a person may have reasons for a shorter one
KERNEL_SECONDS = 900.0  # in one system call, for a file server that is away
ABSENT_SECONDS = 5.0  # between two checks: then this process, or the whole machine, did not run
SETTLE_SECONDS = 10.0  # after that, before any worker is judged
STACK_SECONDS = 3.0
_TAIL = 60_000
_FRAME = re.compile(r'^  File "(.+)", line (\d+) in (.+)$', re.MULTILINE)


@dataclass
class Hang:
    """Checks about once a second. `found`: a line about the first hung rank; None while there is none."""

    run: RunDir
    attempt: int
    node_rank: int
    nnodes: int
    scratch: str
    found: str | None = None
    _checked_at: float = field(default_factory=time.monotonic)
    _settled: float = 0.0
    _since: dict[str, dict[int, float]] = field(default_factory=dict)  # state -> pid -> seen in it since
    _suspects: tuple[int, ...] = ()

    def check(self) -> bool:
        """Returns True if a worker is hung; it is recorded in the run directory by then."""
        now = time.monotonic()
        if now - self._checked_at < CHECK_SECONDS:
            return False
        if now - self._checked_at > ABSENT_SECONDS:
            self._settled = now + SETTLE_SECONDS
        self._checked_at = now
        pulses = [pulse for pulse in read_pulses(self.scratch) if started_at(pulse.pid) is not None]
        if now < self._settled or not pulses:
            return False
        stopped = self._long_in(pulses, now, "T", STOPPED_SECONDS)
        report = find_hang(pulses, now, stopped=stopped)
        if report is not None and self._kernel_may_answer(pulses, now):
            report = None
        if report is not None and not report.hung:
            report = self._among_nodes(pulses, report)
        suspects = tuple(pulse.rank for pulse in report.hung) if report is not None else ()
        sure = bool(suspects) and suspects == self._suspects
        self._suspects = suspects
        if report is not None and sure:
            self._report(pulses, report, now)
        return report is not None and sure

    def _long_in(self, pulses: Sequence[Pulse], now: float, state: str, seconds: float) -> list[int]:
        """Ranks whose process has been in a state at every check for so long."""
        before = self._since.get(state, {})
        mine = {pulse.pid: before.get(pulse.pid, now) for pulse in pulses if _state(pulse.pid) == state}
        self._since[state] = mine
        return [pulse.rank for pulse in pulses if now - mine.get(pulse.pid, now) >= seconds > 0]

    def _kernel_may_answer(self, pulses: Sequence[Pulse], now: float) -> bool:
        """A worker waits in a system call that nothing interrupts: for a disk, or a file server that is away.

        It is as if a store did not answer, and ending the attempt would not help: it could not even be killed.
        """
        gone = self._long_in(pulses, now, "D", KERNEL_SECONDS)
        return any(_state(pulse.pid) == "D" and pulse.rank not in gone for pulse in pulses)

    def _among_nodes(self, pulses: Sequence[Pulse], report: HangReport) -> HangReport | None:
        """All workers here wait. On one node, they wait for each other; else only if all nodes report it."""
        if self.nnodes > 1:
            folder = layout.stalls_folder(self.attempt)
            with contextlib.suppress(OSError, ValueError, KeyError):
                self.run.write_json(layout.stall(self.attempt, self.node_rank), {"time": time.time()})
                names = self.run.listdir(folder)
                times = [float(self.run.read_json(f"{folder}/{name}")["time"]) for name in names]
                if self.node_rank == 0 and sum(time.time() - when < 30.0 for when in times) == self.nnodes:
                    return HangReport(tuple(pulses), all_wait=True)
            return None
        return HangReport(tuple(pulses), all_wait=True)

    # -- reporting --------------------------------------------------------------------------------------------------
    def _report(self, pulses: Sequence[Pulse], report: HangReport, now: float) -> None:
        stopped = {pulse.pid for pulse in pulses if _state(pulse.pid) == "T"}
        stacks = self._stacks(pulses)
        for pulse in report.hung:
            message = _describe(pulse, now, pulse.pid in stopped, len(report.hung) if report.all_wait else 0)
            at = _innermost(stacks.get(pulse.rank, ""))
            message += f"; it is at {at}" if at else ""
            self.found = self.found or f"rank {pulse.rank} is hung: {message}"
            record = {
                "rank": pulse.rank,
                "host": socket.gethostname(),
                "type": HUNG,
                "message": f"{message}. The stacks of all ranks of its node are in their logs",
                "traceback": stacks.get(pulse.rank, "")[-20_000:],
                "step": pulse.step,
                "time": time.time(),
                "fatal": False,
            }
            with contextlib.suppress(OSError):  # the outcome then has less detail
                self.run.write_error(self.attempt, pulse.rank, record)

    def _stacks(self, pulses: Sequence[Pulse]) -> dict[int, str]:
        """Has every worker of this node print its stacks. Returns the output of each rank."""
        sizes = {pulse.rank: _size(self._log(pulse.rank)) for pulse in pulses}
        for pulse in pulses:
            _send(pulse.pid, STACKS)
            if _state(pulse.pid) == "T":
                _send(pulse.pid, signal.SIGCONT)  # it answers first, and goes on then; all end in a moment

        def printed(rank: int) -> str:
            with contextlib.suppress(OSError), open(self._log(rank), "rb") as file:
                file.seek(max(sizes[rank], _size(self._log(rank)) - _TAIL))
                return file.read().decode(errors="replace")
            return ""

        wait_until(lambda: all("most recent call first" in printed(rank) for rank in sizes), seconds=STACK_SECONDS)
        time.sleep(0.2)  # for the rest of the last one
        return {rank: printed(rank) for rank in sizes}

    def _log(self, rank: int) -> str:
        name = layout.rank_log(rank)
        if self.run.local:
            return self.run.path(layout.logs_folder(self.attempt), name)
        return os.path.join(self.scratch, name)


def _describe(pulse: Pulse, now: float, stopped: bool, together: int) -> str:
    doing = pulse.phase.replace("_", " ")
    quiet = f"no sign for {now - pulse.beat:.0f} s after step {pulse.step}, in {doing}"
    if now - pulse.beat <= pulse.limit:
        quiet = f"in {doing} for {now - pulse.since:.0f} s after step {pulse.step}"
    limit = pulse.limit if now - pulse.beat > pulse.limit else pulse.phase_limit
    why = ", its process is stopped (SIGSTOP)" if stopped else f" (limit {limit:.0f} s)"
    if together > 1:
        why += f", as {together - 1} other rank{'s' * (together > 2)}: they wait for each other"
    return f"{quiet}{why}"


def _innermost(stacks: str) -> str:
    """The frame of the main thread: faulthandler prints it last, its innermost frame first."""
    threads = re.split(r"^.*most recent call first\):?$", stacks, flags=re.MULTILINE)
    frames = _FRAME.findall(threads[-1]) if len(threads) > 1 else []
    own = [frame for frame in frames if "/site-packages/" not in frame[0] and "/lib/python" not in frame[0]]
    if not frames:
        return ""
    path, line, name = frames[0]
    text = f"{os.path.basename(path)}:{line} in {name}"
    if own and own[0] != frames[0]:
        text += f", called from {os.path.basename(own[0][0])}:{own[0][1]} in {own[0][2]}"
    return text


def _state(pid: int) -> str:
    """Of its main thread (Linux): T stopped by a signal, D in a system call that cannot be interrupted, R, S …"""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0
