"""Every file of a run against its chain: recipe, plan, claims of the attempts, manifests, rows; and what repairs it.

Only reads. Files of older versions that record no digest are listed, and are no problem.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property

from pydantic import BaseModel

from launchyard.launcher.backends.base import owner_alive
from launchyard.launcher.runs.checkpoints import Saved, list_saved
from launchyard.launcher.runs.facts import RunFacts
from launchyard.run import layout
from launchyard.run.checkpoints import RunCheckpoints, rollbacks
from launchyard.run.events import VALIDATED, is_event
from launchyard.run.frozen import content_digest
from launchyard.run.records import Job, OutcomeRecord, Submission, Target
from launchyard.run.rows import is_row, is_sample, is_tasks_point
from launchyard.run.rundir import RunDir, left_out_steps
from launchyard.storage import damage, files
from launchyard.storage.damage import JsonObject
from launchyard.storage.errors import DamagedError
from launchyard.storage.shards import read_manifest
from launchyard.training.recipe import Recipe, stored_recipe
from launchyard.training.spec import OWN_BATCHES, TokenSource, Workload, place_of_data

NO_REPAIR = "nothing repairs it: put back a copy"
NOT_NEEDED = "nothing repairs it; a resume goes on without it"
COPY_BESIDE = "copy it from beside the tokenizer of the data or the weights that the run started from"
ANEW = "launch resume {run} writes it anew"


class AnyRecord(BaseModel):
    """A JSON object whose fields are not checked."""


@dataclass(frozen=True)
class Problem:
    """`file`: relative to the run directory, or the path of something outside. `repair`: a command, or its lack."""

    file: str
    what: str
    repair: str

    def __str__(self) -> str:
        return f"{self.file} {self.what}; {self.repair}"


@dataclass(frozen=True)
class RunCheck:
    """The result. `files`: how many were read, `not_recorded`: links of the chain that an older version left out."""

    run_id: str
    run_url: str
    alive: bool
    files: int
    problems: list[Problem]
    not_recorded: list[str]

    def to_json(self) -> JsonObject:
        return asdict(self)


def check_run(run: RunDir) -> RunCheck:
    """Reads all of a run, its tensors included, and of its data the lists."""
    walk = _Walk(run, owner_alive(run))
    problems = list(dict.fromkeys(walk.problems()))
    return RunCheck(walk.run_id, run.url, walk.alive, len(walk.read), problems, walk.not_recorded)


@dataclass
class _Walk:
    """One pass over a run, in the order of the chain."""

    run: RunDir
    alive: bool
    read: set[str] = field(default_factory=set)
    not_recorded: list[str] = field(default_factory=list)

    def problems(self) -> Iterator[Problem]:
        yield from self._plan()
        yield from self._recipe()
        yield from self._beside()
        yield from self._submissions()
        for attempt in self._numbers:
            yield from self._attempt(attempt)
        yield from self._checkpoints()
        yield from self._rows()
        yield from self._data()

    @cached_property
    def run_id(self) -> str:
        return RunFacts(self.run).run_id

    @cached_property
    def workload(self) -> Workload | None:
        try:
            return Workload.model_validate(self.run.read_json(layout.PLAN))
        except (FileNotFoundError, ValueError):
            return None

    @cached_property
    def _numbers(self) -> list[int]:
        """Attempts by their folders: a claim may be gone."""
        found = [int(name) for name in self.run.listdir(layout.ATTEMPTS) if name.isdigit()]
        return sorted({*found, *self.run.attempts()})

    @cached_property
    def saved(self) -> list[Saved]:
        return list_saved(self.run, verify_all=True)

    # -- links -------------------------------------------------------------------------------------------------------
    def _plan(self) -> Iterator[Problem]:
        yield from self._record(layout.PLAN, Workload, NO_REPAIR)
        claimed = [job.plan_digest for job in self._jobs() if job.plan_digest]
        if not claimed:
            self.not_recorded.append(f"{layout.PLAN}: no job.json holds its digest")
        elif (raw := self._bytes(layout.PLAN)) is not None and content_digest(raw) != claimed[0]:
            yield Problem(layout.PLAN, "was changed after the launch: its digest is not that in job.json", NO_REPAIR)

    def _jobs(self) -> Iterator[Job]:
        for attempt in self._numbers:
            try:
                yield self.run.read_model(layout.job(attempt), Job)
            except (FileNotFoundError, DamagedError):
                continue

    def _recipe(self) -> Iterator[Problem]:
        raw = self._bytes(layout.RECIPE)
        recorded = RunFacts(self.run).plan.get(layout.RECIPE_DIGEST)
        if raw is None:
            yield self._lost(layout.RECIPE, NO_REPAIR)
        elif not recorded:
            self.not_recorded.append(f"{layout.RECIPE}: {layout.PLAN} does not hold its digest")
            try:
                Recipe.model_validate(stored_recipe(self.run))
            except ValueError:
                yield Problem(layout.RECIPE, "is damaged: it holds no recipe", NO_REPAIR)
        elif content_digest(raw) != recorded:
            yield Problem(
                layout.RECIPE, f"was changed after the launch: its digest is not that in {layout.PLAN}", NO_REPAIR
            )

    def _beside(self) -> Iterator[Problem]:
        """The other files of the whole run."""
        yield from self._record(layout.CODE, AnyRecord, self._say(ANEW))
        yield from self._tokenizer()
        yield from self._beside_tokenizer()
        at_the_end = "the end of the next attempt writes it anew"
        yield from self._record(layout.OUTCOME, OutcomeRecord, at_the_end, optional=True)
        moved = self._say("launch resume {run} --cluster NAME writes it anew")
        yield from self._record(layout.PLACE, AnyRecord, moved, optional=True)
        yield from self._record(layout.STOP, AnyRecord, self._say("launch resume {run} removes it"), optional=True)
        yield from self._record(layout.LATEST, AnyRecord, "the next checkpoint writes it anew", optional=True)
        try:
            rollbacks(self.run)
        except DamagedError:
            what = "remove it, and the checkpoints that were given up count again"
            yield Problem(layout.ROLLBACKS, "is damaged", f"put back a copy, or {what}")

    def _beside_tokenizer(self) -> Iterator[Problem]:
        """The files that a run keeps beside its tokenizer; those of older versions have none."""
        for folder in (layout.TOKENIZER_FOLDER, layout.TEMPLATES_FOLDER):
            for name in self.run.listdir(folder):
                path = f"{folder}/{name}"
                if path in (layout.TOKENIZER, layout.TEMPLATES_FOLDER):
                    continue
                if layout.is_json(name):
                    yield from self._record(path, AnyRecord, COPY_BESIDE, optional=True)
                elif self._bytes(path) is None:
                    yield self._lost(path, COPY_BESIDE)

    def _tokenizer(self) -> Iterator[Problem]:
        data = self.workload.data if self.workload else None
        if data is None or data.tokenizer is None:
            return
        raw = self._bytes(layout.TOKENIZER)
        repair = f"copy {data.tokenizer}"
        if raw is None:
            yield self._lost(layout.TOKENIZER, repair)
        elif data.train[0].folder == OWN_BATCHES or ((made_by := _sha256_of_tokenizer(data.train[0].folder)) is None):
            self.not_recorded.append(f"{layout.TOKENIZER}: the data does not tell which tokenizer made it")
        elif hashlib.sha256(raw).hexdigest() != made_by:
            yield Problem(layout.TOKENIZER, "is changed: it is not the one that made the data", repair)

    def _submissions(self) -> Iterator[Problem]:
        for name in self.run.listdir(layout.SUBMISSIONS):
            if layout.is_json(name):
                numbered = layout.submission_number(name) is not None and not layout.is_accepted(name)
                kind = Submission if numbered else AnyRecord
                yield from self._listed(f"{layout.SUBMISSIONS}/{name}", kind)

    def _attempt(self, attempt: int) -> Iterator[Problem]:
        folder = layout.attempt_folder(attempt)
        held = NOT_NEEDED if attempt == 0 else f"{NO_REPAIR}; it held the keys that resumes have changed"
        yield from self._record(layout.job(attempt), Job, held)
        for name in self.run.listdir(folder):
            path = f"{folder}/{name}"
            if layout.is_grown(name, layout.EVENTS):
                yield from self._log(path, is_event, NOT_NEEDED)
            elif layout.is_json(name) and path != layout.job(attempt):
                outcome = path == layout.outcome(attempt)
                yield from self._listed(path, OutcomeRecord if outcome else AnyRecord)
        for inner in (layout.errors_folder(attempt), layout.targets_folder(attempt), layout.stalls_folder(attempt)):
            target = inner == layout.targets_folder(attempt)
            for name in filter(layout.is_json, self.run.listdir(inner)):
                yield from self._listed(f"{inner}/{name}", Target if target else AnyRecord)
        yield from self._missing_logs(attempt)

    def _missing_logs(self, attempt: int) -> Iterator[Problem]:
        """Logs of which others tell: steps have events, and an event tells of a validation."""
        recorded = self.run.events(attempt)
        if not recorded and any(self.run.attempt_rows(layout.STEPS, attempt)):
            yield Problem(layout.grown(layout.events(attempt)), "has no events, though there are steps", NOT_NEEDED)
        validated = any(event["event"] == VALIDATED for event in recorded)
        if validated and not any(self.run.attempt_rows(layout.VALIDATION, attempt)):
            name = layout.grown(layout.rows(layout.VALIDATION, attempt))
            yield Problem(name, "has no rows, though there were validations", NOT_NEEDED)

    def _checkpoints(self) -> Iterator[Problem]:
        for one in self.saved:
            name = layout.checkpoint_folder(one.step)
            self.read.add(name)
            for fault in one.faults:
                file, _, what = fault.removeprefix(f"{self.run.url}/").partition(" ")
                yield Problem(file, what, self._without(one.step))
            if one.foreign:
                yield Problem(name, one.foreign, self._without(one.step))
            digest = self.workload.data.digest if self.workload else None
            if None not in (digest, one.data_digest) and one.data_digest != digest:
                yield Problem(name, "was made of other tokens than those of the plan", self._without(one.step))
        missing = RunCheckpoints(self.run).missing()
        if missing is not None and all(one.step != missing for one in self.saved):
            yield Problem(layout.checkpoint_folder(missing), "was saved, and is gone", self._go_back(missing))

    def _rows(self) -> Iterator[Problem]:
        lost = self._lost_steps()
        repair = self._go_back(lost[0]) if lost else "nothing is lost: other rows hold its steps"
        for name in self.run.listdir(layout.METRICS):
            if layout.is_grown(name, layout.STEPS):
                yield from self._log(f"{layout.METRICS}/{name}", is_row, repair)
            elif layout.is_grown(name, layout.VALIDATION):
                yield from self._log(f"{layout.METRICS}/{name}", is_row, NOT_NEEDED)
            elif layout.is_grown(name, layout.TASKS):
                yield from self._log(f"{layout.METRICS}/{name}", is_tasks_point, NOT_NEEDED)
            elif layout.is_grown(name, layout.SAMPLES):
                yield from self._log(f"{layout.METRICS}/{name}", is_sample, NOT_NEEDED)
        if lost:
            steps = f"step {lost[0]}" if len(lost) == 1 else f"{len(lost)} steps from {lost[0]} to {lost[-1]}"
            yield Problem(layout.METRICS, f"has no rows of {steps}", repair)

        if not lost:
            yield from self._changed_rows()

    def _changed_rows(self) -> Iterator[Problem]:
        """Files that do not begin with the rows which were there when the newest whole checkpoint was begun."""
        whole = [one for one in self.saved if not (one.faults or one.foreign or one.late)]
        if not whole:
            return
        newest = max(whole, key=lambda one: one.step)
        recorded = read_manifest(newest.path).rows
        if not recorded:
            self.not_recorded.append(f"{layout.METRICS}: {layout.manifest(newest.step)} holds no digest of its files")
        for name, entry in recorded.items():
            if self._digest_of(name, entry.lines) != (entry.lines, entry.xxh3):
                what = f"is changed: its first {entry.lines} rows are not those that step {newest.step} was saved with"
                yield Problem(f"{layout.METRICS}/{layout.grown(name)}", what, f"{NO_REPAIR}; no weights depend on it")

    def _digest_of(self, stem: str, count: int) -> tuple[int, str]:
        """Of the first lines of a file of rows, out of all its parts; one that a store took twice counts once."""
        import xxhash

        digest = xxhash.xxh3_64()
        known: set[int] = set()
        for line in self._lines(stem):
            if len(known) == count:
                break
            if (mark := hash(line)) not in known:
                known.add(mark)
                digest.update(line)
        return len(known), digest.hexdigest()

    def _lines(self, stem: str) -> Iterator[bytes]:
        for name in self.run.listdir(layout.METRICS):
            if layout.is_grown(name, stem):
                with contextlib.suppress(FileNotFoundError, *damage.UNREADABLE):  # _rows tells of it
                    blocks = files.read_blocks(self.run.path(layout.METRICS, name))
                    yield from (line + b"\n" for line in damage.stream_lines(blocks))

    def _lost_steps(self) -> list[int]:
        """Steps that were made by the records of the run, and have no row that counts."""
        lost: list[int] = []
        last = 0
        for row in self.run.rows(layout.STEPS):
            lost += range(last + 1, int(row["step"]))
            last = int(row["step"])
        counting = [one.step for one in self.saved if not one.late and not one.foreign]
        ended = self.run.outcome()
        lost += range(last + 1, max([last, *counting, (ended.step or 0) if ended else 0]) + 1)
        left_out = set(left_out_steps(self.run))
        return [step for step in lost if step not in left_out]

    def _data(self) -> Iterator[Problem]:
        repair = self._say("launch resume {run} data.source=PLACE, if the same tokens lie in another place")
        if self.workload is None:
            return
        try:
            data = place_of_data(self.run, self.workload)
            self.read.add(layout.DATA_PLACE)
        except ValueError as error:
            yield Problem(layout.DATA_PLACE, str(error).removeprefix(f"{self.run.path(layout.DATA_PLACE)} "), repair)
            return
        for source in data.every_source:
            if source.folder == OWN_BATCHES:
                continue
            if what := self._difference(source):
                yield Problem(source.folder, what, repair)

    def _difference(self, source: TokenSource) -> str:
        """The difference between some tokens and those of the plan, by their lists; empty if there is none."""
        from launchyard.training.data.dataset_spec import source_digest

        try:
            found = source_digest(source.folder)
        except FileNotFoundError:
            return "is gone"
        except (OSError, ValueError) as error:
            return f"cannot be read: {error}"
        if source.digest is None:
            self.not_recorded.append(f"{source.folder}: {layout.PLAN} does not hold its digest")
        return "" if source.digest in (None, found) else "holds other tokens than those of the plan"

    # -- means -------------------------------------------------------------------------------------------------------
    def _say(self, command: str) -> str:
        return command.format(run=self.run_id)

    @property
    def _intact(self) -> list[int]:
        return [one.step for one in self.saved if not (one.faults or one.late or one.foreign)]

    def _without(self, step: int) -> str:
        """The command of a run that cannot use its checkpoint of a step, if it needs one."""
        newer = [other for other in self._intact if other > step]
        return f"nothing repairs it, and nothing needs it: step {newer[-1]} is intact" if newer else self._go_back(step)

    def _go_back(self, step: int) -> str:
        """The command that makes a step again, from the newest intact checkpoint before it."""
        before = [other for other in self._intact if other < step]
        way = f"--from-step {before[-1]}" if before else "--from-scratch"
        return f"launch resume {self.run_id} {way}"

    def _record(self, name: str, schema: type[BaseModel], repair: str, *, optional: bool = False) -> Iterator[Problem]:
        self.read.add(name)
        try:
            self.run.read_model(name, schema)
        except FileNotFoundError:
            if not optional:
                yield Problem(name, "is missing", repair)
        except DamagedError as error:
            yield Problem(name, str(error).removeprefix(f"{self.run.path(name)} "), repair)

    def _listed(self, name: str, schema: type[BaseModel]) -> Iterator[Problem]:
        """A record that stands in a list, and may have been taken back since, or in a store before."""
        yield from self._record(name, schema, NOT_NEEDED, optional=True)

    def _log(self, name: str, is_valid: Callable[[JsonObject], bool], repair: str) -> Iterator[Problem]:
        self.read.add(name)
        ends = deque([b""], maxlen=1)
        bad: list[int] = []
        blocks = _noting_ends(files.read_blocks(self.run.path(name)), ends)
        try:
            deque(damage.stream_objects(blocks, is_valid, bad), maxlen=0)
        except OSError as error:
            if not (isinstance(error, FileNotFoundError) or damage.unreadable(error)):
                raise
            yield self._lost(name, repair)
            return
        end = ends[0]
        if bad:
            yield Problem(name, f"is damaged: {damage.skipped(bad)}", repair)
        elif not end:
            yield Problem(name, "is empty", repair)
        elif end != b"\n" and not self.alive:
            yield Problem(name, "is cut: it ends within a line", repair)

    def _bytes(self, name: str) -> bytes | None:
        """The content of a file; None if it is missing or cannot be read."""
        self.read.add(name)
        try:
            return self.run.read_bytes(name)
        except OSError as error:
            if isinstance(error, FileNotFoundError) or damage.unreadable(error):
                return None
            raise

    def _lost(self, name: str, repair: str) -> Problem:
        return Problem(name, "cannot be read" if files.exists(self.run.path(name)) else "is missing", repair)


def _noting_ends(blocks: Iterable[bytes], ends: deque[bytes]) -> Iterator[bytes]:
    """The blocks, and aside the last byte of each that has one."""
    for block in blocks:
        if block:
            ends.append(block[-1:])
        yield block


def _sha256_of_tokenizer(split_folder: str) -> str | None:
    """Of the tokenizer that made some tokens, as their folder records it; None if that is not there."""
    from launchyard.training.data.index import read_dataset

    try:
        dataset = read_dataset(split_folder.rpartition("/")[0])
    except (OSError, ValueError):
        return None
    return dataset.tokenizer.sha256 if dataset else None
