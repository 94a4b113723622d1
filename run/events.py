"""Every event that rank 0 writes into events.jsonl of an attempt: its name, its fields, and the file that writes it.

Each line holds `event`, `time` (Unix seconds) and the fields of that event. Light; knows no worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from launchyard.storage.damage import JsonObject

PROCESS_STARTED = "process started"
READING_WEIGHTS = "reading weights"
STARTED = "started"
NOT_SWEPT = "not swept"
NOT_RECORDED = "not recorded"
SAVED = "saved"
SAVE_FAILED = "save failed"
FELL_BACK = "fell back"
PASSED_OVER = "passed over"
CLEANUP_FAILED = "cleanup failed"
VALIDATING = "validating"
VALIDATED = "validated"
ENDING_EARLY = "ending early"
ASKING_TASKS = "asking tasks"
TASKS_DONE = "tasks done"
TASKS_FAILED = "tasks failed"
LOSS_SPIKE = "loss spike"
UPDATE_SKIPPED = "update skipped"
REWOUND = "rewound"
STRAGGLER = "straggler"
STRAGGLER_OVER = "straggler over"
DATA_TROUBLE = "data trouble"
STORE_TROUBLE = "store trouble"
STORE_ANSWERS = "store answers again"
TRACKER_TROUBLE = "tracker trouble"
PROFILED = "profiled"
NOT_PROFILED = "not profiled"
STOPPING = "stopping"
SAVED_BEFORE_STOPPING = "saved before stopping"
EXPORTED = "exported"
SAMPLING = "sampling"
SAMPLED = "sampled"
NOT_SAMPLED = "not sampled"
FINISHED = "finished"
SNAPSHOTS_OFF = "snapshots off"
SNAPSHOT_DAMAGED = "snapshot damaged"
SNAPSHOTS_LOST = "snapshots lost"


@dataclass(frozen=True)
class Event:
    """`writer`: the file of training/ that writes it. `fields`: name -> meaning; those in `optional` may be absent."""

    name: str
    writer: str
    meaning: str
    fields: Mapping[str, str] = field(default_factory=dict)
    optional: tuple[str, ...] = ()


def is_event(event: JsonObject) -> bool:
    """Returns True for an event of any version; False for a line that lost what readers rely on."""
    if not isinstance(event.get("event"), str) or not isinstance(event.get("time"), int | float):
        return False
    return event["event"] not in WITH_STEP or isinstance(event.get("step"), int)


_STEP = "Finished optimizer steps."
_MESSAGE = "The error message."
_STRAGGLER_FIELDS = {
    "step": _STEP,
    "rank": "The slow rank.",
    "ratio": "Its compute time over the median of all ranks.",
    "seconds": "Its compute time per step.",
    "median_seconds": "The median of all ranks.",
}
_HARM_FIELDS = {
    "cause": "`nonfinite` or `spike`.",
    "loss": "Of that step; a word where it is no number.",
    "grad_norm": "The same.",
    "usual": "Loss of the steps before it.",
    "data": "Its samples.",
}
_STORE_FIELDS = {"path": "Path or URL.", "seconds": "For how long.", "message": "The operation and its error."}
_FILE = "training/telemetry/events.py"

EVENTS = (
    Event(PROCESS_STARTED, "training/worker.py", "The process of rank 0 has read its recipe.", {
        "rank": "Always 0.", "host": "Name of its machine.", "pid": "Its process.", "born": "Start of that process, "
        "in Unix seconds.",
    }),
    Event(READING_WEIGHTS, _FILE, "Rank 0 is reading the weights to start from; now and then.", {
        "bytes": "That it has read.", "total_bytes": "Of all that it reads: its own rows.",
    }),
    Event(STARTED, "training/worker.py", "Model, data and state are ready; the first step follows.", {
        "step": "From which training goes on; 0 at the beginning.", "resumed": "From a state of this run?",
        "world_size": "Number of ranks.", "device": "Of rank 0.", "source": "Of that state: `memory`, of the "
        "agents, or `disk`, a checkpoint.",
    }, optional=("source",)),
    Event(SNAPSHOTS_OFF, "training/checkpoint/from_memory.py", "No state is kept in memory; training goes on.", {
        "message": "Why.",
    }),
    Event(SNAPSHOT_DAMAGED, "training/checkpoint/from_memory.py", "A state in memory is damaged; another is tried.", {
        "step": "Of that state.", "message": "The rank, and what is wrong.",
    }),
    Event(SNAPSHOTS_LOST, "training/checkpoint/from_memory.py", "No state in memory is whole; a checkpoint is gone on "
    "from.", {"message": "Which ranks have none, or of how many workers it is."}),
    Event(NOT_SWEPT, "training/worker.py", "Leftovers of earlier attempts stay for now.", {"message": _MESSAGE}),
    Event(NOT_RECORDED, "training/telemetry/environment.py", "environment.json could not be written.", {
        "message": _MESSAGE,
    }),
    Event(SAVED, "training/checkpoint/checkpointer.py", "A checkpoint is committed.", {
        "step": _STEP, "kind": "`permanent` or `temporary`.", "seconds": "From the beginning of the save.",
        "stall_seconds": "For which it held up training.", "upload_seconds": "For writing the shards of rank 0.",
        "bytes": "Of all its files.", "commit_seconds": "For the manifest.",
    }),
    Event(SAVE_FAILED, "training/checkpoint/checkpointer.py", "A save failed; training goes on.", {
        "step": _STEP, "kind": "`permanent` or `temporary`.", "message": _MESSAGE,
    }),
    Event(FELL_BACK, "training/checkpoint/checkpointer.py", "A checkpoint is damaged; an older one is tried.", {
        "step": "Of that checkpoint.", "message": _MESSAGE,
    }),
    Event(PASSED_OVER, "training/checkpoint/checkpointer.py", "A checkpoint was committed too late to count.", {
        "step": "Of that checkpoint.", "message": _MESSAGE,
    }),
    Event(CLEANUP_FAILED, "training/checkpoint/cleaning.py", "Superfluous files stay; said once in an attempt.", {
        "what": "Which of them.", "message": _MESSAGE,
    }, optional=("what",)),
    Event(VALIDATING, "training/telemetry/telemetry.py", "A validation begins.", {"step": _STEP}),
    Event(VALIDATED, "training/telemetry/telemetry.py", "A validation is done, of one set of held-out data.", {
        "step": _STEP, "set": "Name in validation.sets; absent of that of data.validation.",
        "loss": "Nats per token, on held-out data.", "seconds": "For which it took.",
    }, optional=("set",)),
    Event(ENDING_EARLY, "training/telemetry/telemetry.py", "The run ends early: `early_stopping`, `train.max_time`.", {
        "step": _STEP, "message": "Why.",
    }),
    Event(ASKING_TASKS, "training/telemetry/telemetry.py", "Rank 0 asks a checkpoint tasks.", {
        "step": _STEP, "tasks": "Their names.",
    }),
    Event(TASKS_DONE, "training/telemetry/telemetry.py", "Tasks have scores.", {
        "step": _STEP, "scores": "Name of the figure -> value.", "seconds": "For which it took.",
    }),
    Event(TASKS_FAILED, "training/telemetry/telemetry.py", "Tasks have none; training goes on.", {
        "step": _STEP, "message": _MESSAGE,
    }),
    Event(LOSS_SPIKE, "training/telemetry/recorder.py", "The loss has jumped up.", {
        "step": _STEP, "loss": "Of this step.", "usual": "Of the steps before it.",
    }),
    Event(UPDATE_SKIPPED, "training/telemetry/telemetry.py", "The update of a step is left out (stability).", {
        "step": "That step, counted from 1.", **_HARM_FIELDS,
    }, optional=("usual",)),
    Event(REWOUND, "training/telemetry/telemetry.py", "Training goes back, to pass over steps (stability).", {
        "step": "Finished steps of the state that it goes back to.", "checkpoint": "Step of the checkpoint that leads "
        "there; 0: the beginning.", "at": "The step that was found, counted from 1.", "n_steps": "That it passes over.",
        **_HARM_FIELDS,
    }, optional=("usual",)),
    Event(STRAGGLER, "training/telemetry/recorder.py", "A rank computes longer than the others.", _STRAGGLER_FIELDS),
    Event(STRAGGLER_OVER, "training/telemetry/recorder.py", "It does so no longer.", _STRAGGLER_FIELDS),
    Event(DATA_TROUBLE, "training/compose.py", "The cache of chunks got around a fault, or bytes are not counted.", {
        "message": _MESSAGE,
    }),
    Event(STORE_TROUBLE, _FILE, "A store has failed for a while; it is asked again.", _STORE_FIELDS),
    Event(STORE_ANSWERS, _FILE, "The store answers again.", _STORE_FIELDS),
    Event(TRACKER_TROUBLE, "training/telemetry/trackers/open.py", "A tracker has lost rows, or is not used any more.", {
        "tracker": "Its name.", "message": _MESSAGE,
    }, optional=("tracker",)),
    Event(PROFILED, "training/profile/writing.py", "Rank 0 has written a trace.", {
        "step": "The first in it, counted from 1.", "last": "The last in it.", "file": "In the run directory.",
        "bytes": "Of it.",
    }),
    Event(NOT_PROFILED, "training/profile/writing.py", "Steps are not traced; training goes on.", {
        "message": "Why.",
    }),
    Event(STOPPING, "training/telemetry/telemetry.py", "All ranks have agreed to stop after this step.", {
        "step": _STEP, "reason": "`stop`, `preempted`, `time limit` or `terminated`.",
    }),
    Event(SAVED_BEFORE_STOPPING, "training/telemetry/telemetry.py", "That state is saved.", {
        "seconds": "Since the stop request reached this rank.",
    }),
    Event(EXPORTED, "training/artifacts.py", "The weights are written.", {"folder": "In the run directory."}),
    Event(SAMPLING, "training/telemetry/telemetry.py", "A checkpoint writes a text.", {"step": _STEP}),
    Event(SAMPLED, "training/telemetry/telemetry.py", "The text is written.", {
        "step": _STEP, "text": "With its beginning.",
    }),
    Event(NOT_SAMPLED, "training/telemetry/telemetry.py", "There is no text; training goes on.", {
        "step": _STEP, "message": _MESSAGE,
    }),
    Event(FINISHED, "training/worker.py", "All is written; only the outcome follows.", {
        "step": _STEP, "seconds": "Of the attempt by phase, as [metrics](metrics.md) name them.",
    }),
)  # fmt: skip

WITH_STEP = frozenset(event.name for event in EVENTS if "step" in event.fields and "step" not in event.optional)
