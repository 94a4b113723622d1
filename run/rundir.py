"""The run directory: the only corridor between the launcher and the workers.

Works on any fsspec URL. Light: pydantic, stdlib, and fsspec when a file is touched. The names are those of layout.py:

    RUN_URL/  recipe.yaml  plan.json  code.json               frozen at the first submit
              submissions/0000{.json, .job.json, .sh}         jobs sent to a scheduler with a queue
              submissions/waiting.json                        why a job waits that itself asks for nodes
              attempts/0000/{job.json, outcome.json, events.jsonl, errors/, targets/, logs/}
              metrics/{steps,validation}-0000*.jsonl          rows, one file (or a series of parts) an attempt
              checkpoints/step-00001000/{manifest.json, …}    exists only with its manifest
              checkpoints/latest.json                         the step committed last
              stop.json                                       a request for an agreed stop
              outcome.json                                    the last word, written last
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from launchyard.host.periodic import PeriodicTask
from launchyard.run import layout
from launchyard.run.events import PROCESS_STARTED, REWOUND, STARTED, UPDATE_SKIPPED, is_event
from launchyard.run.layout import BAD_NODES, LOG_PART_BYTES, WAITING, log_part
from launchyard.run.records import BadNode, BadNodes, Job, OutcomeRecord, Submission, Target
from launchyard.run.rows import Surviving, each_step_once, is_row, is_sample, is_tasks_point
from launchyard.storage import damage, files, retry
from launchyard.storage.damage import JsonObject
from launchyard.storage.errors import DamagedError

RecordModel = TypeVar("RecordModel", bound=BaseModel)
BAD_NODE_SECONDS = 24 * 3600.0
VOID = {"void": True}  # a record that was taken back: readers find none


class RunDir:
    """Files of one run. `url` is a local path, file:// or any fsspec URL."""

    def __init__(self, url: str) -> None:
        self.local = not files.is_remote(url)
        self.url = os.path.abspath(files.normal(url)) if self.local else files.normal(url)

    # -- names ---------------------------------------------------------------------------------------------------
    def path(self, *parts: str) -> str:
        return "/".join([self.url, *filter(None, parts)])

    @staticmethod
    def attempt_dir(attempt: int) -> str:
        return layout.attempt_folder(attempt)

    @staticmethod
    def checkpoint_dir(step: int) -> str:
        return layout.checkpoint_folder(step)

    def periodic(self, action: Callable[[], None], *, every: float) -> PeriodicTask:
        """A task against this directory; in a thread where that is remote. A store that fails is not asked again."""

        def once() -> None:
            with retry.retry_budget(0):
                action()

        return PeriodicTask(once, every=every, in_thread=not self.local)

    # -- plain files ---------------------------------------------------------------------------------------------
    def exists(self, name: str) -> bool:
        return files.exists(self.path(name))

    def listdir(self, name: str) -> list[str]:
        """Sorted names inside a folder; empty if there is none."""
        return files.listdir(self.path(name))

    def age(self, name: str) -> float:
        """Seconds since a file was written, by the clock of where the run lies. FileNotFoundError without the file."""
        return files.age(self.path(name))

    def read_bytes(self, name: str) -> bytes:
        """FileNotFoundError if there is none."""
        return files.read(self.path(name))

    def read_from(self, name: str, offset: int, length: int | None = None) -> bytes:
        """Returns the content of a growing file from a byte on; nothing if there is none."""
        try:
            return files.read(self.path(name), offset, length)
        except FileNotFoundError:
            return b""

    def read_log(self, name: str, offset: int = 0) -> bytes:
        """A log from a byte on, put together from its parts; nothing if there is none."""
        if self.local:
            return self.read_from(name, offset)
        parts: list[bytes] = []
        while True:
            part, inside = divmod(offset, LOG_PART_BYTES)
            raw = self.read_from(log_part(name, part), inside)
            parts.append(raw)
            offset += len(raw)
            if not raw or offset % LOG_PART_BYTES:
                return b"".join(parts)

    def blocks(self, name: str) -> Iterable[bytes]:
        """The content of a long file, bit by bit."""
        return files.read_blocks(self.path(name))

    def read_text(self, name: str) -> str:
        return self.read_bytes(name).decode()

    def read_json(self, name: str) -> Any:
        """Raises FileNotFoundError without the file, DamagedError if it is none of ours any more."""
        path = self.path(name)
        try:
            raw = self.read_bytes(name)
        except OSError as error:
            if damage.unreadable(error):
                raise DamagedError(f"{path} cannot be read: {error.strerror}") from error
            raise
        try:
            record = json.loads(raw)
        except ValueError as error:
            raise DamagedError(f"{path} is damaged: {damage.describe_fault(raw, error)}") from error
        if record == VOID:
            raise FileNotFoundError(2, "No such file", path)
        return record

    def read_model(self, name: str, schema: type[RecordModel]) -> RecordModel:
        """As read_json, checked against a schema."""
        record = self.read_object(name)
        try:
            return schema.model_validate(record)
        except ValidationError as error:
            first = error.errors()[0]
            key = "".join(f"{part}: " for part in (".".join(map(str, first["loc"])),) if part)
            raise DamagedError(f"{self.path(name)} is damaged: {key}{first['msg'].lower()}") from error

    def find_json(self, name: str) -> JsonObject | None:
        """The record in a file; None without it, or if it is damaged: that is reported."""
        try:
            return self.read_object(name)
        except FileNotFoundError:
            return None
        except DamagedError as error:
            damage.report_damage(str(error))
            return None

    def read_plan(self) -> JsonObject:
        """The frozen plan, with the place of the run since its last move. Raises as read_json does."""
        plan = self.read_object(layout.PLAN)
        try:
            return {**plan, **self.read_object(layout.PLACE)}
        except FileNotFoundError:
            return plan

    def read_object(self, name: str) -> JsonObject:
        """As read_json, of a file that holds an object."""
        record = self.read_json(name)
        if not isinstance(record, dict):
            raise DamagedError(f"{self.path(name)} is damaged: it holds no JSON object")
        return record

    def write_text(self, name: str, text: str, *, sync: bool = False) -> None:
        """Replace a file as a whole: a reader sees the old text or the new, a crash leaves no half."""
        files.write(self.path(name), text.encode(), sync=sync)

    def write_json(self, name: str, value: object, *, sync: bool = False) -> None:
        self.write_text(name, json.dumps(value, indent=1) + "\n", sync=sync)

    def create_text(self, name: str, text: str) -> None:
        """Write a file that must not exist yet; FileExistsError if another was faster."""
        files.create(self.path(name), text.encode())

    def create_json(self, name: str, value: object) -> None:
        self.create_text(name, json.dumps(value, indent=1) + "\n")

    def remove(self, name: str) -> None:
        """Remove one file; nothing happens if it is gone already."""
        files.remove(self.path(name))

    def clear(self, name: str) -> None:
        """Takes a record back; nothing happens if there is none. In a store, where deleting is a right of its own and
        may be missing, it is overwritten.
        """
        if self.local:
            self.remove(name)
            return
        try:
            self.read_json(name)
        except FileNotFoundError:
            return
        except DamagedError:  # it would count as a record
            pass
        self.write_json(name, VOID)

    # -- submissions ---------------------------------------------------------------------------------------------
    def submit(self, submission: Submission) -> int:
        """Write down the next submission; its number."""
        found = [layout.submission_number(name) for name in self.listdir(layout.SUBMISSIONS)]
        number = max((number for number in found if number is not None), default=-1) + 1
        self.create_json(layout.submission(number), submission.model_dump(mode="json"))
        return number

    def submission(self, number: int) -> Submission:
        return self.read_model(layout.submission(number), Submission)

    def withdraw(self, number: int) -> None:
        """It was not accepted."""
        self.clear(layout.submission(number))

    def accepted(self, number: int, job_id: str) -> None:
        self.write_json(layout.accepted(number), {"job_id": job_id})

    def unanswered(self) -> int | None:
        """The newest submission, if it is not known whether a scheduler has accepted it: its launcher was killed."""
        found = [layout.submission_number(name) for name in self.listdir(layout.SUBMISSIONS)]
        number = max((number for number in found if number is not None), default=None)
        if number is None or number in self._accepted() or self.find_json(layout.submission(number)) is None:
            return None
        return number

    def newest_submission(self) -> Submission | None:
        """The last one that a scheduler has accepted."""
        found = (self._accepted_submission(number) for number in reversed(self._accepted()))
        return next((submission for submission in found if submission is not None), None)

    def submissions(self) -> list[Submission]:
        """All that a scheduler has accepted, oldest first."""
        found = [self._accepted_submission(number) for number in self._accepted()]
        return [submission for submission in found if submission is not None]

    def was_queued(self, job: Job) -> bool:
        """Was this job sent to a scheduler?"""
        return any(submission.job_id == job.job_id for submission in self.submissions())

    def _accepted(self) -> list[int]:
        names = [name for name in self.listdir(layout.SUBMISSIONS) if layout.is_accepted(name)]
        return [number for name in names if (number := layout.submission_number(name)) is not None]

    def _accepted_submission(self, number: int) -> Submission | None:
        """None if one of its two files is damaged: that is reported."""
        record = self.find_json(layout.accepted(number))
        if record is None or not isinstance(record.get("job_id"), str):
            return None
        try:
            return self.submission(number).model_copy(update={"job_id": record["job_id"]})
        except DamagedError as error:
            damage.report_damage(str(error))
            return None

    def record_waiting(self, job_id: str, reason: str) -> None:
        """Records the reason for which a running job waits for the nodes of its attempt."""
        self.write_json(WAITING, {"job_id": job_id, "reason": reason, "time": time.time()})

    def waiting(self, job_id: str) -> str | None:
        """Returns the reason for which a job waits; None if it does not."""
        record = self.find_json(WAITING) or {}
        return str(record.get("reason")) if record.get("job_id") == job_id else None

    def clear_waiting(self) -> None:
        self.clear(WAITING)

    def record_bad_node(self, node: BadNode) -> None:
        """Records a node on which nothing of the run can be started."""
        others = [one for one in self._recorded_bad_nodes() if one.node_id != node.node_id]
        self.write_json(BAD_NODES, BadNodes(nodes=[*others, node]).model_dump(mode="json"))

    def bad_nodes(self) -> list[BadNode]:
        """Returns the nodes that attempts leave out: those recorded within a day."""
        since = time.time() - BAD_NODE_SECONDS
        return [node for node in self._recorded_bad_nodes() if node.time > since]

    def _recorded_bad_nodes(self) -> list[BadNode]:
        try:
            return self.read_model(BAD_NODES, BadNodes).nodes
        except FileNotFoundError:
            return []
        except DamagedError as error:
            damage.report_damage(str(error))
            return []

    # -- attempts ------------------------------------------------------------------------------------------------
    def attempts(self) -> list[int]:
        """Claimed attempts, oldest first."""
        numbers = [int(name) for name in self.listdir(layout.ATTEMPTS) if name.isdigit()]
        claimed = [n for n in numbers if self.is_claimed(n)]
        while self.is_claimed(after := claimed[-1] + 1 if claimed else 0):
            claimed.append(after)  # a store's listing may lag
        return claimed

    def is_claimed(self, attempt: int) -> bool:
        return self.exists(layout.job(attempt))

    def job(self, attempt: int) -> Job:
        """The claim to an attempt. A damaged one is reported, and what other files tell of it returned.

        Raises FileNotFoundError without a claim.
        """
        try:
            return self.read_model(layout.job(attempt), Job)
        except DamagedError as error:
            damage.report_damage(str(error))
            return self._remains_of_job(attempt)

    def _remains_of_job(self, attempt: int) -> Job:
        """Without a process: its heartbeat alone tells whether its owner lives. DamagedError if the plan is damaged."""
        plan = self.read_plan()
        beat = self.find_json(layout.heartbeat(attempt)) or {}
        started = next((event for event in self.events(attempt) if event["event"] == PROCESS_STARTED), {})
        return Job(
            attempt=attempt,
            backend=str(plan.get("scheduler", "")),
            job_id="",
            host="",
            pid=0,
            pid_started=0.0,
            created=float(started.get("time") or beat.get("time") or 0.0),
            nnodes=int(plan.get("nnodes", 1)),
            nproc_per_node=int(plan.get("nproc_per_node", 1)),
            device="cuda" if plan.get("device") == "cuda" else "cpu",
            damaged=True,
        )

    def claim_attempt(self, job: Job) -> None:
        """FileExistsError if the attempt is claimed already."""
        self.create_json(layout.job(job.attempt), job.model_dump(mode="json"))

    def outcome(self, attempt: int | None = None) -> OutcomeRecord | None:
        """Returns the outcome of an attempt (None: of the run); None while it has not ended."""
        name = layout.OUTCOME if attempt is None else layout.outcome(attempt)
        try:
            return self.read_model(name, OutcomeRecord)
        except FileNotFoundError:
            return None
        except DamagedError as error:
            damage.report_damage(str(error))
            return None

    def write_outcome(self, record: OutcomeRecord, *, of_run: bool = False) -> None:
        name = layout.OUTCOME if of_run else layout.outcome(record.attempt)
        self.write_json(name, record.model_dump(mode="json"), sync=True)

    def clear_outcome(self) -> None:
        """Of the run: it goes on."""
        self.clear(layout.OUTCOME)

    def write_error(self, attempt: int, rank: int, record: JsonObject) -> None:
        """Writes the error that ended one worker: type, message, traceback, step, time, host, fatal, data if any."""
        self.write_json(layout.error(attempt, rank), record)

    def errors(self, attempt: int) -> list[JsonObject]:
        """Returns the errors that ended the workers of an attempt, first error first."""
        folder = layout.errors_folder(attempt)
        found = [self.find_json(f"{folder}/{name}") for name in self.listdir(folder) if layout.is_json(name)]
        return sorted((error for error in found if error), key=lambda error: float(error.get("time", 0)))

    # -- metrics -------------------------------------------------------------------------------------------------
    def register_target(self, attempt: int, target: Target) -> None:
        self.write_json(layout.target(attempt, target.rank), target.model_dump(mode="json"))

    def remove_target(self, attempt: int, rank: int) -> None:
        """Nothing happens if it is gone already."""
        self.clear(layout.target(attempt, rank))

    def targets(self, attempt: int) -> list[Target]:
        """Workers of an attempt that serve metrics, by rank. Those that were killed are among them."""
        folder = layout.targets_folder(attempt)
        found = []
        for name in self.listdir(folder):
            if layout.is_json(name):
                try:
                    found.append(self.read_model(f"{folder}/{name}", Target))
                except FileNotFoundError:  # removed since it was listed
                    continue
                except DamagedError as error:
                    damage.report_damage(str(error))
        return found

    # -- rows ----------------------------------------------------------------------------------------------------
    def rows(self, kind: str) -> Iterator[JsonObject]:
        """The surviving rows of a kind, one per step, of validations one per step and set, in order.

        An attempt that resumed at step s replaces the rows of earlier attempts after s; so does one that goes back.
        No more is held than the rows of one step: what calls it should not either, for runs are long.
        """
        return each_step_once(
            row
            for attempt, surviving in self.surviving().items()
            for row in self.attempt_rows(kind, attempt)
            if surviving.has(row)
        )

    def surviving(self) -> dict[int, Surviving]:
        """Which rows count of each attempt that started, oldest first."""
        found: dict[int, Surviving] = {}
        last = math.inf
        for number in reversed(self.attempts()):
            recorded = self.events(number)
            if (start := self._start_of(number, recorded)) is None:
                continue
            back = [(float(event["time"]), int(event["step"])) for event in recorded if event["event"] == REWOUND]
            found[number] = Surviving(last, back)
            last = min([last, start, *(step for _, step in back)])
        return dict(reversed(found.items()))

    def attempt_rows(self, kind: str, attempt: int) -> Iterator[JsonObject]:
        """All rows of a kind that one attempt wrote, also those that did not survive."""
        is_valid = {layout.TASKS: is_tasks_point, layout.SAMPLES: is_sample}.get(kind, is_row)
        for name in self.listdir(layout.METRICS):
            if layout.is_grown(name, layout.rows_prefix(kind, attempt)):
                yield from self._lines_of(f"{layout.METRICS}/{name}", is_valid)

    def _lines_of(self, name: str, is_valid: Callable[[JsonObject], bool]) -> Iterator[JsonObject]:
        """The lines of a log, as they are read; damage is reported and skipped."""
        path = self.path(name)
        bad: list[int] = []
        try:
            yield from damage.stream_objects(self.blocks(name), is_valid, bad)
        except OSError as error:
            if not damage.unreadable(error):
                raise
            damage.report_damage(f"{path} cannot be read: {error.strerror}")
        if bad:
            damage.report_damage(f"{path}: {damage.skipped(bad)}")

    def events(self, attempt: int) -> list[JsonObject]:
        """Returns the events of rank 0: {"event": …, "time": …, …}, see run/events.py."""
        folder = self.attempt_dir(attempt)
        names = [name for name in self.listdir(folder) if layout.is_grown(name, layout.EVENTS)]
        return [event for name in names for event in self.events_in(f"{folder}/{name}")]

    def events_in(self, name: str) -> list[JsonObject]:
        """Those in one file."""
        return list(self._lines_of(name, is_event))

    def told_checkpoint(self) -> int | None:
        """The step of the newest checkpoint, where a look takes its records at their word."""
        return None

    def starts(self) -> dict[int, int]:
        """The step from which each attempt went on that got so far, oldest attempt first."""
        found = {number: self.start_step(number) for number in self.attempts()}
        return {number: start for number, start in found.items() if start is not None}

    def start_step(self, attempt: int) -> int | None:
        """The step from which an attempt went on; None if it never got that far.

        Where the event is damaged, its first row tells.
        """
        return self._start_of(attempt, self.events(attempt))

    def _start_of(self, attempt: int, found: list[JsonObject]) -> int | None:
        for event in found:
            if event["event"] == STARTED:
                return int(event["step"])
        first = next(self.attempt_rows(layout.STEPS, attempt), None)
        return None if first is None else int(first["step"]) - 1

    # -- stop ----------------------------------------------------------------------------------------------------
    def request_stop(self, reason: str) -> None:
        self.write_json(layout.STOP, {"reason": reason, "time": time.time()})

    def stop_requested(self) -> JsonObject | None:
        """The request; without its reason if it is damaged, for somebody has made it."""
        try:
            record = self.read_json(layout.STOP)
        except FileNotFoundError:
            return None
        except DamagedError as error:
            damage.report_damage(str(error))
            return {}
        return record if isinstance(record, dict) else {}

    def give_notice(self, attempt: int, reason: str) -> None:
        """Tell the agents of an attempt that its nodes are about to be taken: agreed save, then leave."""
        self.write_json(layout.notice(attempt), {"reason": reason, "time": time.time()})

    def notice(self, attempt: int) -> str | None:
        record = self.find_json(layout.notice(attempt))
        if record is None:
            return "notice" if self.exists(layout.notice(attempt)) else None
        return str(record.get("reason"))

    def clear_stop(self) -> None:
        self.clear(layout.STOP)


def left_out_steps(run: RunDir) -> Iterator[int]:
    """Steps, counted from 1, that made no update and have no row: left out, or gone back over."""
    for attempt in run.attempts():
        for event in run.events(attempt):
            if event["event"] == UPDATE_SKIPPED:
                yield int(event["step"])
            elif event["event"] == REWOUND:
                yield from range(int(event["step"]) + 1, int(event.get("at", 0)) + 1)
