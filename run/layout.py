"""Every file and folder of a run directory: its name, its writer and its content. No other file spells one.

Names are relative to the run directory. Knows no content: see records.py, events.py, rows.py and storage/shards.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from launchyard.storage.shards import MANIFEST

# -- frozen at the launch --------------------------------------------------------------------------------------------
RECIPE = "recipe.yaml"
PLAN = "plan.json"
CODE = "code.json"
TOKENIZER_FOLDER = "tokenizer"
TOKENIZER = f"{TOKENIZER_FOLDER}/tokenizer.json"
OWN_CODE_FOLDER = "own_code"
TEMPLATES_FOLDER = f"{TOKENIZER_FOLDER}/additional_chat_templates"

# -- of the whole run ------------------------------------------------------------------------------------------------
OUTCOME = "outcome.json"
STOP = "stop.json"
ACKNOWLEDGED = "acknowledged.json"
JOB_LOG = "job.log"
LOSS_CURVE = "loss.svg"
SAMPLE = "sample.txt"
WEIGHTS = "weights"
METRICS_CSV = "metrics.csv"
TENSORBOARD = "tensorboard"
ROLLBACKS = "rollbacks.json"
DATA_PLACE = "data.json"
PLACE = "place.json"
GONE_TO = "moved.json"
RECIPE_DIGEST = "recipe_xxh3"  # a key of plan.json
WANDB = "wandb"  # the name is W&B's own
MLFLOW = "mlflow.db"
PROFILE_REQUEST = "profile.json"

# -- folders with a file, or a series of files, for each of many things -----------------------------------------------
ATTEMPTS = "attempts"
SUBMISSIONS = "submissions"
METRICS = "metrics"
CHECKPOINTS = "checkpoints"
PROFILES = "profiles"
LATEST = f"{CHECKPOINTS}/latest.json"
WAITING = f"{SUBMISSIONS}/waiting.json"
BAD_NODES = f"{SUBMISSIONS}/bad_nodes.json"
STEPS = "steps"  # the kinds of rows
VALIDATION = "validation"
TASKS = "tasks"
SAMPLES = "samples"
KINDS_OF_ROWS = (STEPS, VALIDATION, TASKS, SAMPLES)
EVENTS = "events"
NOTICES = "notices"

_JSON = ".json"
_JSONL = ".jsonl"
_LOG = ".log"
_ACCEPTED = ".job.json"
_STEP_FOLDER = re.compile(r"step-(\d+)")
_JOB_SCRIPT = re.compile(r"job-\d{4}\.sh")
_JOB_FILE = re.compile(r"job-\w+\.(sh|log)")
_TRACE_NAME = re.compile(r"step-0*(\d+)-rank-(\d+)\.json\.gz")
_LOG_NAME = re.compile(r"(rank|node)-0*(\d+)\.log")
LOG_PART_BYTES = 1 << 20


def own_code(name: str, digest: str) -> str:
    """The frozen copy of a user's file: its content decides its name."""
    return f"{OWN_CODE_FOLDER}/{name.removesuffix('.py')}-{digest}.py"


def own_modules(code: str) -> str:
    """The folder with the modules of such a copy."""
    return code.removesuffix(".py")


# -- attempts --------------------------------------------------------------------------------------------------------
def attempt_folder(attempt: int) -> str:
    return f"{ATTEMPTS}/{attempt:04d}"


def job(attempt: int) -> str:
    return f"{attempt_folder(attempt)}/job.json"


def heartbeat(attempt: int) -> str:
    return f"{attempt_folder(attempt)}/heartbeat.json"


def notice(attempt: int) -> str:
    return f"{attempt_folder(attempt)}/notice.json"


def nodes(attempt: int) -> str:
    return f"{attempt_folder(attempt)}/nodes.json"


def environment(attempt: int) -> str:
    return f"{attempt_folder(attempt)}/environment.json"


def outcome(attempt: int) -> str:
    return f"{attempt_folder(attempt)}/{OUTCOME}"


def events(attempt: int) -> str:
    """Without its ending: see run/append.py."""
    return f"{attempt_folder(attempt)}/{EVENTS}"


def errors_folder(attempt: int) -> str:
    return f"{attempt_folder(attempt)}/errors"


def error(attempt: int, rank: int) -> str:
    return f"{errors_folder(attempt)}/rank-{rank:05d}{_JSON}"


def targets_folder(attempt: int) -> str:
    return f"{attempt_folder(attempt)}/targets"


def target(attempt: int, rank: int) -> str:
    return f"{targets_folder(attempt)}/{rank:05d}{_JSON}"


def phases_folder(attempt: int) -> str:
    return f"{attempt_folder(attempt)}/phases"


def phases(attempt: int, rank: int) -> str:
    return f"{phases_folder(attempt)}/{rank:05d}{_JSON}"


def stalls_folder(attempt: int) -> str:
    return f"{attempt_folder(attempt)}/stalls"


def stall(attempt: int, node_rank: int) -> str:
    return f"{stalls_folder(attempt)}/node-{node_rank}{_JSON}"


# -- logs ------------------------------------------------------------------------------------------------------------
def logs_folder(attempt: int) -> str:
    return f"{attempt_folder(attempt)}/logs"


def rank_log(rank: int) -> str:
    """In `logs_folder`, or in a folder of the node until it is uploaded from there."""
    return f"rank-{rank:05d}{_LOG}"


def node_log(node_rank: int) -> str:
    """In the same folder."""
    return f"node-{node_rank}{_LOG}"


def log_origin(name: str) -> tuple[str, int] | None:
    """("rank" or "node", its number) of the name of a log; None of another name."""
    found = _LOG_NAME.fullmatch(name)
    return (found[1], int(found[2])) if found else None


def is_log(name: str) -> bool:
    return name.endswith(_LOG)


def log_part(name: str, part: int) -> str:
    """In a store a log lies in parts of LOG_PART_BYTES; the first has its plain name."""
    return f"{name}.{part:04d}" if part else name


# -- submissions -----------------------------------------------------------------------------------------------------
def submission(number: int) -> str:
    return f"{SUBMISSIONS}/{number:04d}{_JSON}"


def accepted(number: int) -> str:
    return f"{SUBMISSIONS}/{number:04d}{_ACCEPTED}"


def submission_number(name: str) -> int | None:
    """Of the name of a file in `SUBMISSIONS`; None of one that belongs to no submission."""
    return int(name[:4]) if name[:4].isdigit() else None


def is_accepted(name: str) -> bool:
    return name.endswith(_ACCEPTED)


def job_script(number: int) -> str:
    """In host.folders.job_folder: beside the run where that is remote."""
    return f"job-{number:04d}.sh"


def is_job_script(name: str) -> bool:
    return _JOB_SCRIPT.fullmatch(name) is not None


def job_output(job_id: str) -> str:
    """In the same folder."""
    return f"job-{job_id}{_LOG}"


JOB_CODE = "code"  # in the same folder


def notice_of(name: str) -> str:
    """Of an event that somebody is told of."""
    return f"{NOTICES}/{name}{_JSON}"


# -- rows ------------------------------------------------------------------------------------------------------------
def rows_prefix(kind: str, attempt: int) -> str:
    """Returns the prefix of the files in `METRICS` that hold rows of an attempt. `kind`: one of those above."""
    return f"{kind}-{attempt:04d}"


def rows(kind: str, attempt: int) -> str:
    """Without its ending: see run/append.py."""
    return f"{METRICS}/{rows_prefix(kind, attempt)}"


def grown(stem: str) -> str:
    """A file of rows or events where rows can be appended."""
    return f"{stem}{_JSONL}"


def grown_part(stem: str, part: int) -> str:
    """A part of it in a store, where they cannot."""
    return f"{stem}-{part:06d}{_JSONL}"


def grown_parts(names: list[str], base: str) -> list[int]:
    """The numbers of its parts among the names of a folder, in order. base: the stem without the folder."""
    found = [name.removeprefix(f"{base}-").removesuffix(_JSONL) for name in names if is_grown(name, f"{base}-")]
    return sorted(int(number) for number in found if number.isdigit())


def is_grown(name: str, prefix: str) -> bool:
    return name.startswith(prefix) and name.endswith(_JSONL)


def tracker_mark(tracker: str) -> str:
    return f"{METRICS}/tracker-{tracker}{_JSON}"


# -- checkpoints -----------------------------------------------------------------------------------------------------
def checkpoint_folder(step: int) -> str:
    return f"{CHECKPOINTS}/step-{step:08d}"


def manifest(step: int) -> str:
    return f"{checkpoint_folder(step)}/{MANIFEST}"


def checkpoint_step(name: str) -> int | None:
    """Of the name of a folder in `CHECKPOINTS`; None of another name."""
    found = _STEP_FOLDER.fullmatch(name)
    return int(found[1]) if found else None


def attempt_prefix(attempt: int) -> str:
    """Returns the prefix of all files that an attempt writes into a checkpoint's folder, except the manifest."""
    return f"{attempt:04d}"


def shard_file(attempt: int, rank: int) -> str:
    """In the folder of a checkpoint."""
    return f"{attempt_prefix(attempt)}-rank-{rank:05d}.safetensors"


# -- profiles --------------------------------------------------------------------------------------------------------
def profile(step: int, rank: int) -> str:
    """Without its ending: one of those below. step: the first that is traced, counted from 1."""
    return f"{PROFILES}/step-{step:04d}-rank-{rank}"


TRACE = f"{_JSON}.gz"  # written last: with it, the others are there
TRACE_SUMMARY = _JSON
TRACE_TABLE = ".txt"
MEMORY_SNAPSHOT = ".memory.pickle"


def trace_origin(name: str) -> tuple[int, int] | None:
    """(step, rank) of the name of a trace in `PROFILES`; None of another name."""
    found = _TRACE_NAME.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else None


def is_json(name: str) -> bool:
    return name.endswith(_JSON)


# -- descriptions ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Entry:
    """One file or folder, for people. `pattern`: NNNN an attempt or a submission, NNNNN a rank, N a node."""

    pattern: str
    writer: str
    when: str
    meaning: str


ENTRIES = (
    Entry(RECIPE, "launcher", "at the launch", "The whole recipe, with `extends` and the command line worked in."),
    Entry(PLAN, "launcher", "at the launch, last", "All that follows from it, as `--dry-run --json` prints it; "
          "with this file the folder is a run."),
    Entry(CODE, "launcher", "at the launch, first; anew at each resume", "Git commit, uncommitted changes, versions of "
          "packages; `source`, a digest of launchyard's own files that every worker compares with its own; `earlier`, "
          "the same in short for the code before a resume."),
    Entry(f"{OWN_CODE_FOLDER}/NAME-DIGEST.py", "launcher", "at the launch, and at a resume with `code=`, if the recipe "
          "names a file", "The user's own functions; `code` of the recipe, or of an attempt's overrides, names the "
          "one that counts."),
    Entry(f"{OWN_CODE_FOLDER}/NAME-DIGEST/MODULE.py", "launcher", "with it, if it imports modules that lie beside it",
          "Such a module; a dot stands for the slash of a package, as in `parts.mixer.py`."),
    Entry(TOKENIZER, "launcher", "at the launch", "The tokenizer of the data."),
    Entry(f"{TOKENIZER_FOLDER}/NAME", "launcher", "at the launch", "The other files of the tokenizer, as they lay "
          "beside it or beside the weights that the run starts from: `tokenizer_config.json`, "
          "`special_tokens_map.json`, `added_tokens.json`, `chat_template.jinja`, `additional_chat_templates/`, the "
          "licence, and `generation_config.json`, whose `eos_token_id` also holds the end of the data's documents."),
    Entry(f"{SUBMISSIONS}/NNNN.json", "launcher", "before a job is sent to a scheduler", "With what that job will "
          "claim its attempts: [Submission](run-directory.md#submission)."),
    Entry(f"{SUBMISSIONS}/NNNN.job.json", "launcher", "when the scheduler has accepted it", "The id of the job, as "
          "`job_id`."),
    Entry(WAITING, "owner (Ray)", "while a job that runs waits for nodes", "The reason: `job_id`, `reason`, `time`."),
    Entry(BAD_NODES, "owner (Ray)", "when a node cannot start what the run sends it", "Nodes that the next attempts "
          "leave out, for a day: [BadNodes](run-directory.md#badnodes). Remove the file to have them tried again."),
    Entry(f"{ATTEMPTS}/NNNN/job.json", "owner", "to claim the attempt, create-only", "The owner: host, process, "
          "workers, device, overrides: [Job](run-directory.md#job)."),
    Entry(f"{ATTEMPTS}/NNNN/heartbeat.json", "owner", "every few seconds", "Sign of life of the owner, for other "
          "hosts: `time`, `host`, `pid`."),
    Entry(f"{ATTEMPTS}/NNNN/notice.json", "launcher, owner (Ray)", "when nodes are about to be taken", "Asks the "
          "agents for an agreed save: `reason`, `time`."),
    Entry(f"{ATTEMPTS}/NNNN/nodes.json", "owner (Ray)", "when the nodes of the attempt are found", "The nodes of its "
          "agents, by node rank."),
    Entry(f"{ATTEMPTS}/NNNN/environment.json", "rank 0", "before the first step", "What is installed there, to build "
          "it anew: packages, modules, driver, system: [EnvironmentRecord](run-directory.md#environmentrecord)."),
    Entry(f"{ATTEMPTS}/NNNN/events.jsonl", "rank 0", "all along", "One [event](run-directory.md#events) "
          "per line."),
    Entry(f"{ATTEMPTS}/NNNN/errors/rank-NNNNN.json", "worker, agent", "when a worker fails or is found hung",
          "Type, message, traceback, step, and `fatal`: another try would end the same way."),
    Entry(f"{ATTEMPTS}/NNNN/targets/NNNNN.json", "worker", "from its start to its clean end", "The address of its "
          "Prometheus metrics: [Target](run-directory.md#target)."),
    Entry(f"{ATTEMPTS}/NNNN/stalls/node-N.json", "agent", "while all its workers wait, on several nodes", "Last time "
          "of that, as `time`."),
    Entry(f"{ATTEMPTS}/NNNN/phases/NNNNN.json", "worker", "at its clean end, of several", "Its time by phase: "
          "`rank`, `seconds`."),
    Entry(f"{ATTEMPTS}/NNNN/logs/rank-NNNNN.log", "worker", "all along", "Output of a worker."),
    Entry(f"{ATTEMPTS}/NNNN/logs/node-N.log", "agent", "all along", "Output of torchrun on a node."),
    Entry(f"{ATTEMPTS}/NNNN/{OUTCOME}", "rank 0, else the agent of node 0", "at the end of the attempt", "Its "
          "outcome: [OutcomeRecord](run-directory.md#outcomerecord)."),
    Entry(f"{METRICS}/steps-NNNN.jsonl", "rank 0", "every step", "One [row](run-directory.md#steprow) per step."),
    Entry(f"{METRICS}/validation-NNNN.jsonl", "rank 0", "every validation", "One "
          "[row](run-directory.md#validationrow) per validation."),
    Entry(f"{METRICS}/tasks-NNNN.jsonl", "rank 0", "when tasks are done, if the recipe asks", "One "
          "[row](run-directory.md#taskspoint) per checkpoint that was asked."),
    Entry(f"{METRICS}/samples-NNNN.jsonl", "rank 0", "when a text is written, if the recipe asks", "One "
          "[row](run-directory.md#samplerow) per text."),
    Entry(f"{METRICS}/tracker-NAME.json", "rank 0", "now and then, if the recipe asks for that tracker", "The last "
          "`step` that a tracker has been given."),
    Entry(f"{CHECKPOINTS}/step-NNNNNNNN/NNNN-rank-NNNNN.safetensors", "worker", "during a save", "The shards of one "
          "rank; attempt and rank stand in the name."),
    Entry(f"{CHECKPOINTS}/step-NNNNNNNN/{MANIFEST}", "rank 0", "to commit a checkpoint, create-only",
          "Files and tensors with hashes: [Manifest](run-directory.md#manifest). Without it there is no checkpoint."),
    Entry(LATEST, "rank 0", "after a commit", "The `step` committed last, for stores that list late."),
    Entry(f"{NOTICES}/NAME.json", "owner, rank 0", "at an event of `notify`, create-only; marked when it is sent",
          "An event that the webhook is told of, once: [Notice](run-directory.md#notice)."),
    Entry(f"{PROFILES}/step-NNNN-rank-N.json.gz", "worker", "after steps that are traced", "A "
          "[trace](../guides/profile.md) for Perfetto: Chrome's JSON. In the name the first step, and the rank."),
    Entry(f"{PROFILES}/step-NNNN-rank-N.json", "worker", "just before", "What it says, in short: phases, operators and "
          "modules with their times."),
    Entry(f"{PROFILES}/step-NNNN-rank-N.txt", "worker", "just before", "The same as tables."),
    Entry(f"{PROFILES}/step-NNNN-rank-N.memory.pickle", "worker (GPU)", "just before, with `profile.memory`",
          "Snapshot of the GPU's memory, for torch's memory viewer."),
    Entry(PROFILE_REQUEST, "`launch profile --steps`", "when somebody asks", "Steps that a live attempt is to trace: "
          "the keys of [profile](recipe.md), `attempt` and `time`; the agents poll it."),
    Entry(JOB_LOG, "owner (local)", "all along", "Output of the owner."),
    Entry("job-NNNN.sh", "launcher (SLURM)", "before it is sent", "The batch script of a submission."),
    Entry("job-ID.log", "scheduler (SLURM)", "all along", "Output of a job and its agents."),
    Entry(f"{JOB_CODE}/", "launcher", "at each submission, from a checkout", "The copy of launchyard that all attempts "
          "of the job run: links to one in the user's cache where they can be had. Ray gets a zip instead."),
    Entry(STOP, "`launch stop`, `launch cancel`", "when somebody asks", "`reason` and `time`; the agents poll it."),
    Entry(ACKNOWLEDGED, "`launch ack`", "when somebody knows of its end", "By whom, and which end: "
          "[Acknowledged](run-directory.md#acknowledged). No alert pages for that one any more."),
    Entry(ROLLBACKS, "`launch resume --from-step`, `--from-scratch`", "before that attempt is submitted",
          "Attempts that went back on purpose, each with the `step` from which it went on."),
    Entry(DATA_PLACE, "`launch resume RUN data.source=…` or `train.max_epochs=…`", "before that attempt is submitted",
          "The place of the data since then, or more of its epochs counted, in place of `data` in `plan.json`; the "
          "digests are equal."),
    Entry(PLACE, "`launch resume --cluster`", "before that attempt is submitted", "The cluster since then: `cluster`, "
          "`scheduler`, `store`, `storage`, `environment` and `request`, in place of those in `plan.json`."),
    Entry(GONE_TO, "`launch resume RUN --cluster NAME`", "when the run was copied elsewhere", "Where it goes on, "
          "as `url`; here it does not."),
    Entry(METRICS_CSV, "rank 0", "all along, if the recipe asks", "The rows of steps as a table, see "
          "[trackers](../guides/experiment-trackers.md)."),
    Entry(f"{TENSORBOARD}/", "rank 0", "all along, if the recipe asks", "Event files of TensorBoard."),
    Entry(f"{WANDB}/", "rank 0", "all along, if the recipe asks", "The own files of Weights & Biases."),
    Entry(MLFLOW, "rank 0", "all along, if the recipe asks", "The database of MLflow, unless a server is named."),
    Entry(LOSS_CURVE, "rank 0", "at the end of an attempt", "The loss curve."),
    Entry(SAMPLE, "rank 0", "at completion, if the recipe asks", "A text that the model wrote."),
    Entry(f"{WEIGHTS}/", "rank 0", "at completion, if the recipe asks", "The weights as a Hugging Face directory."),
    Entry(OUTCOME, "owner", "last of all", "Outcome of the run: [OutcomeRecord](run-directory.md#outcomerecord)."),
)  # fmt: skip
_AT_THE_TOP = {entry.pattern.split("/")[0] for entry in ENTRIES}


def is_of_run(name: str) -> bool:
    """Does a file or folder of this name at the top of a run directory belong to the run?"""
    return name in _AT_THE_TOP or _JOB_FILE.fullmatch(name) is not None
