"""run/layout.py owns every name in a run directory, run/events.py every event, run/rows.py every key of a row."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from launchyard.run import events, layout
from launchyard.run.rows import StepRow, ValidationRow
from launchyard.run.rundir import RunDir
from tests.support.small_runs import make_run, run_workers, write_data

ROOT = Path(__file__).parents[2]
ROOMS = ("host", "storage", "run", "model", "training", "launcher", "src")
OLD = ROOT / "tests" / "run" / "old_run" / "run"
# A sandbox is a server of its own, with files of its own.
PRODUCT = [
    path
    for room in ROOMS
    for path in sorted(ROOT.glob(f"{room}/**/*.py"))
    if "sandbox" not in path.relative_to(ROOT).parts
]
# The stem of each name with digits, as an f-string would spell it, and each name without.
STEMS = re.compile(
    r"(^|/)(rank-|node-|step-|steps-|validation-|tracker-|job-(%j|\\d)?)($|[.{])|(^|/)(attempts|checkpoints|submissions)/"
)
FILES = re.compile(
    r"(^|/)(recipe\.yaml|plan\.json|code\.json|outcome\.json|stop\.json|waiting\.json|job\.json|heartbeat\.json|"
    r"notice\.json|nodes\.json|latest\.json|job\.log|loss\.svg|sample\.txt|metrics\.csv|mlflow\.db|events\.jsonl)$"
)
# Methods of a RunDir that take a name.
BY_NAME = {
    "path", "exists", "listdir", "remove", "read_bytes", "read_from", "read_log", "read_text", "read_json",
    "write_text", "write_json", "create_text", "create_json",
}  # fmt: skip


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def docstrings(tree: ast.Module) -> set[int]:
    """ids of the constants that are only for people."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    return {id(node.value) for node in nodes}


def spelled(path: Path) -> Iterator[str]:
    """Each string of a file that is a name in a run directory."""
    tree = tree_of(path)
    told = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            if FILES.search(node.value) or STEMS.search(node.value):
                yield f"line {node.lineno}: {node.value!r}"
        elif isinstance(node, ast.Call) and asks_run(node.func):
            parts = [part for value in node.args[:1] for part in literals(value)]
            yield from (f"line {node.lineno}: {part!r}" for part in parts if re.search("[a-z]", part))


def asks_run(function: ast.expr) -> bool:
    """`run.exists`, `self._run.read_json` and so on."""
    if not isinstance(function, ast.Attribute) or function.attr not in BY_NAME:
        return False
    return ast.unparse(function.value).rpartition(".")[2] in ("run", "_run")


def literals(node: ast.expr) -> Iterator[str]:
    values = node.values if isinstance(node, ast.JoinedStr) else [node]
    yield from (value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str))


def test_no_other_file_spells_a_name() -> None:
    found = {name_of(path): list(spelled(path)) for path in PRODUCT if name_of(path) != "run/layout.py"}
    assert {name: words for name, words in found.items() if words} == {}
    assert list(spelled(ROOT / "run" / "layout.py")), "the search finds what it looks for"


def known(name: str) -> bool:
    """Does an entry of the layout describe this file?"""
    for entry in layout.ENTRIES:
        wanted = re.sub(r"NNNNNNNN|NNNNN|NNNN", lambda found: rf"\d{{{len(found[0])}}}", re.escape(entry.pattern))
        wanted = re.sub(r"(?<=-)(N|ID|NAME)(?=\\\.)", r"\\w+", wanted)
        if re.fullmatch(f"{wanted}.+" if entry.pattern.endswith("/") else wanted, name):
            return True
    return False


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_every_name_is_described() -> None:
    """What the functions of the layout name, and what lies in a run of the first version."""
    stem, mark = layout.rows(layout.STEPS, 3), layout.tracker_mark("wandb")
    logs = [f"{layout.logs_folder(3)}/{name}" for name in (layout.rank_log(2), layout.node_log(1))]
    names = [
        layout.job(3), layout.heartbeat(3), layout.notice(3), layout.nodes(3), layout.outcome(3), layout.error(3, 2),
        layout.environment(3),
        layout.target(3, 2), layout.stall(3, 1), layout.submission(4), layout.accepted(4), layout.grown(stem),
        layout.grown(layout.rows(layout.VALIDATION, 3)), layout.grown(layout.events(3)), layout.manifest(70), mark,
        f"{layout.checkpoint_folder(70)}/{layout.shard_file(3, 2)}", layout.job_script(4), layout.job_output("123"),
        *logs,
        *(getattr(layout, key) for key in ("RECIPE", "PLAN", "CODE", "TOKENIZER", "OUTCOME", "STOP", "JOB_LOG")),
        *(getattr(layout, key) for key in ("LOSS_CURVE", "SAMPLE", "METRICS_CSV", "MLFLOW", "LATEST", "WAITING")),
        *(f"{getattr(layout, key)}/x" for key in ("WEIGHTS", "TENSORBOARD", "WANDB", "JOB_CODE")),
    ]  # fmt: skip
    assert [name for name in [*names, *sorted(files_of(OLD))] if not known(name)] == []
    assert not known("attempts/0003/other.json")


@pytest.mark.parametrize(("make", "read"), [
    (lambda n: layout.checkpoint_folder(n).rpartition("/")[2], layout.checkpoint_step),
    (lambda n: layout.submission(n).rpartition("/")[2], layout.submission_number),
    (lambda n: layout.accepted(n).rpartition("/")[2], layout.submission_number),
    (lambda n: layout.rank_log(n), lambda name: layout.log_origin(name)[1]),
    (lambda n: layout.node_log(n), lambda name: layout.log_origin(name)[1]),
])  # fmt: skip
def test_numbers_come_back_out_of_names(make, read) -> None:
    assert [read(make(number)) for number in (0, 7, 1234)] == [0, 7, 1234]
    assert layout.checkpoint_step("latest.json") is None
    assert layout.submission_number("waiting.json") is None
    assert layout.log_origin("rank-00001.log.0002") is None


# -- events ----------------------------------------------------------------------------------------------------------
NAMES = {
    key: value for key, value in vars(events).items() if key.isupper() and isinstance(value, str) and key[0] != "_"
}
TELLERS = ("on_event", "self.events", "telemetry.events", "instruments.events")  # what tells an event when it is called
TABLE = {event.name: event for event in events.EVENTS}


def told(path: Path) -> Iterator[tuple[str, set[str] | None, ast.Call]]:
    """Each event that a file tells: its name, and its fields, or None where they are not spelled out."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(TELLERS):
            first = node.args[0]
            fields = {word.arg for word in node.keywords if word.arg}
            spread = any(word.arg is None for word in node.keywords)
            for choice in (first.body, first.orelse) if isinstance(first, ast.IfExp) else (first,):
                yield ast.unparse(choice).rpartition(".")[2], None if spread else fields, node


WRITERS = [path for path in PRODUCT if path.relative_to(ROOT).parts[0] == "training"]


def test_what_is_told_and_the_table_are_the_same() -> None:
    found: dict[str, list[tuple[str, set[str] | None]]] = {}
    for path in WRITERS:
        for key, fields, call in told(path):
            if (name_of(path), key) == ("training/telemetry/events.py", "name"):
                continue  # hands on what it was told
            assert key in NAMES, f"{name_of(path)}:{call.lineno} tells {key}: take a name of run/events.py"
            found.setdefault(NAMES[key], []).append((name_of(path), fields))
    assert set(found) == set(TABLE) == set(NAMES.values()), "each event has a name, an entry and somebody who tells it"
    for name, calls in found.items():
        entry = TABLE[name]
        assert {path for path, _ in calls} == {entry.writer}, name
        for fields in (fields for _, fields in calls if fields is not None):
            assert set(entry.fields) - set(entry.optional) <= fields <= set(entry.fields), name


def compared(path: Path) -> Iterator[str]:
    """Strings that a file compares with the name of an event."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Compare) and re.search(r"""(\[|get\()['"]event['"]""", ast.unparse(node)):
            yield from (f"line {node.lineno}: {text}" for one in node.comparators for text in literals(one))
        elif isinstance(node, ast.Match) and "'event'" in ast.unparse(node.subject):
            values = [
                one.value for case in node.cases for one in ast.walk(case.pattern) if isinstance(one, ast.MatchValue)
            ]
            yield from (f"line {node.lineno}: {text}" for one in values for text in literals(one))


def test_who_reads_events_compares_with_the_names() -> None:
    """And a name of two words, which means nothing else, stands nowhere else at all."""
    found = {name_of(path): list(compared(path)) for path in PRODUCT}
    for path in PRODUCT:
        tree = tree_of(path)
        said = docstrings(tree)
        constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in said]
        if name_of(path) != "run/events.py":
            found[name_of(path)] += [
                str(one.value) for one in constants if one.value in NAMES.values() and " " in one.value
            ]
    assert {name: words for name, words in found.items() if words} == {}


# -- a real run ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    folder = tmp_path_factory.mktemp("rows")
    length = {"train.max_steps": 6, "validation.every_steps": 3, "metrics.trackers": ["csv"]}
    run = make_run(folder / "run", write_data(folder / "data"), length)
    run_workers(run, 1, {})
    return run


@pytest.mark.parametrize("where", ["real", "old"])
def test_rows_and_events_of_a_run_fit(where: str, real: RunDir) -> None:
    run = real if where == "real" else RunDir(str(OLD))
    steps = [StepRow.model_validate(row) for row in run.rows(layout.STEPS)]
    validations = [ValidationRow.model_validate(row) for row in run.rows(layout.VALIDATION)]
    assert steps and validations
    for event in run.events(0):
        entry = TABLE[event["event"]]
        assert event.keys() - {"event", "time"} <= set(entry.fields), entry.name
        assert set(entry.fields) - set(entry.optional) <= event.keys(), entry.name


def test_every_file_of_a_real_run_is_described(real: RunDir) -> None:
    assert [name for name in files_of(Path(real.url)) if not known(name)] == []
