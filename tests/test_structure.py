"""The shape of the house as it grows: folders, signatures, names, circles. Every table here only shrinks.

A table holds what was there when its rule was made. An entry that is not needed any more fails the test, too.
"""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.test_house import CODE, PRODUCT, ROOMS, functions_of, module_of, name_of, refuse, tree_of

MAX_FILES = 15  # in a folder
MAX_PARAMETERS = 8  # of a function, without self

FULL_FOLDERS = {"tests/support": 19}
LONG_SIGNATURES = {
    "launcher/agent/torchrun.py torchrun_argv": 12,
    "launcher/cli/main.py launch_recipe": 11,  # one for each option that can be typed
    "launcher/cli/monitor.py monitor": 9,  # the same
    "launcher/cli/runs.py resume": 10,  # the same
    "model/memory.py training_memory": 9,  # each changes the answer
    "training/step.py train_step": 10,
}

# Modules behind one interface say the same names; so do the commands of the command line and what they call.
FAMILIES = (
    r"launcher/backends/\w+/\w+\.py",
    r"launcher/sandbox/\w+/(?P<file>\w+)\.py",
    r"model/zoo/families/\w+\.py",
    r"training/optim/\w+\.py",
    r"training/telemetry/trackers/\w+\.py",
)
COMMON_NAMES = {"main"}  # what `python -m` runs
TWICE = {
    "Batch",
    "Facts",
    "Kind",
    "Node",
    "Part",
    "Place",
    "Point",
    "Request",
    "Settings",
    "View",
    "address_of",
    "environment",
    "lines",
    "make_ready",
    "memory",
    "node_log",
    "now",
    "serve",
    "size",
    "submit",
    "target",
}
# Constants of the same name that belong to their files; one that both sides must agree on has one home.
CONSTANTS_TWICE = {
    "AGAIN_SECONDS",
    "ASK_SECONDS",
    "CODE",
    "END_SECONDS",
    "EVENTS",
    "HEAD",
    "HEARTBEAT_SECONDS",
    "HERE",
    "HOST",
    "INDEX",
    "JSON",
    "KINDS",
    "LEAVE_SECONDS",
    "LOOPBACK",
    "MAX_BYTES",
    "MEMORY",
    "METRICS",
    "PACKAGES",
    "PIECE_BYTES",
    "PLAIN_SECONDS",
    "POLL_SECONDS",
    "PORTS",
    "QUIET",
    "READY_SECONDS",
    "REASONS",
    "ROOT",
    "RUN",
    "SAMPLES_AHEAD",
    "SOURCE",
    "TOKENIZER",
}

# Annotations of parameters and results that say Any. JSON and what comes from torch are most of them.
ANY = {"src": 1, "storage": 23, "run": 6, "model": 4, "training": 32, "launcher": 193}
CIRCLES: set[tuple[str, ...]] = set()
OWN_PRIVATE_NAMES: set[str] = set()


def compare(found: Mapping[str, int], listed: Mapping[str, int], rule: str) -> None:
    """Each count is the listed one: more breaks the rule, less is to be written down."""
    worse = [f"{name}: {n}, not {listed.get(name, 0)}" for name, n in found.items() if n > listed.get(name, 0)]
    refuse(worse, rule)
    better = [f"{name}: {found.get(name, 0)}" for name, n in listed.items() if found.get(name, 0) < n]
    refuse(better, "better than its table says, write the new count or take the line out")


# -- folders and signatures ---
def test_a_folder_holds_few_files() -> None:
    counts = Counter(name_of(path.parent) for path in CODE)
    del counts["benchmarks"]  # scripts that know nothing of each other, one for each dated result
    del counts["model/zoo/families"]  # a table, a file for each row
    full = {name: n for name, n in counts.items() if n > MAX_FILES}
    compare(full, FULL_FOLDERS, f"a folder holds at most {MAX_FILES} files of Python")


def parameters_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    found = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return found[1:] if found and found[0].arg in ("self", "cls") else found


def test_a_function_has_few_parameters() -> None:
    long = {
        f"{name_of(path)} {f.name}": len(parameters_of(f))
        for path in PRODUCT
        for f in functions_of(path)
        if len(parameters_of(f)) > MAX_PARAMETERS
    }
    compare(long, LONG_SIGNATURES, f"a function has at most {MAX_PARAMETERS} parameters; make one value of some")


def annotations_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.expr]:
    several = (function.args.vararg, function.args.kwarg)
    for argument in (*parameters_of(function), *(one for one in several if one is not None)):
        if argument.annotation is not None:
            yield argument.annotation
    if function.returns is not None:
        yield function.returns


def says_any(annotation: ast.expr) -> bool:
    return any(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(annotation))


def test_any_in_signatures_becomes_rarer() -> None:
    found = dict.fromkeys(ROOMS, 0)
    for path in PRODUCT:
        room = name_of(path).split("/")[0]
        found[room] += sum(says_any(note) for f in functions_of(path) for note in annotations_of(f))
    compare(found, ANY, "annotations with Any, by room; say the type, or a Protocol")


# -- names ---
def is_command(node: ast.stmt) -> bool:
    decorators = getattr(node, "decorator_list", [])
    return any(re.search(r"\.(command|group)\b", ast.unparse(decorator)) for decorator in decorators)


def public_names(path: Path) -> Iterator[str]:
    """What a module defines at its top level for others, commands of the command line aside."""
    for node in tree_of(path).body:
        names: list[str] = []
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names = [] if is_command(node) else [node.name]
        elif isinstance(node, ast.Assign):
            names = [one.id for target in node.targets for one in ast.walk(target) if isinstance(one, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        yield from (name for name in names if not name.startswith("_"))


def family_of(path: Path) -> str:
    """The file itself, or for modules behind one interface what they have in common."""
    name = name_of(path)
    for family in FAMILIES:
        if found := re.fullmatch(family, name):
            return f"{family} {found.groupdict().get('file', '')}"
    return name


def defined_twice() -> dict[str, list[str]]:
    homes: dict[str, dict[str, str]] = defaultdict(dict)
    for path in PRODUCT:
        for name in public_names(path):
            homes[name].setdefault(family_of(path), name_of(path))
    return {
        name: sorted(found.values()) for name, found in homes.items() if len(found) > 1 and name not in COMMON_NAMES
    }


def test_a_public_name_has_one_meaning() -> None:
    found = defined_twice()
    listed = TWICE | CONSTANTS_TWICE
    new = [f"{name}: {', '.join(files)}" for name, files in sorted(found.items()) if name not in listed]
    refuse(new, "a public name is defined once: import it from its home, or give one of the two a name of its own")
    refuse(sorted(listed - found.keys()), "defined once by now: take the name out of its table")


def own_private_uses(path: Path, modules: set[str]) -> Iterator[str]:
    """file:line of private names of other modules of ours: `from launchyard.x import _y`, `x._y`."""
    here: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("launchyard"):
            here |= {one.asname or one.name for one in node.names if f"{node.module}.{one.name}" in modules}
            private = [one.name for one in node.names if one.name.startswith("_")]
            yield from (f"{name_of(path)}:{node.lineno} {name}" for name in private)
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name) or node.value.id not in here:
            continue
        if node.attr.startswith("_") and not node.attr.startswith("__"):
            yield f"{name_of(path)}:{node.lineno} {node.attr}"


def test_private_names_stay_in_their_module() -> None:
    modules = {module_of(path) for path in PRODUCT}
    found = {use for path in PRODUCT for use in own_private_uses(path, modules)}
    refuse(sorted(found - OWN_PRIVATE_NAMES), "a private name belongs to its module; make it public, or pass a value")
    refuse(sorted(OWN_PRIVATE_NAMES - found), "not used any more: take it out of the table")


# -- circles ---
def imports_of(path: Path, modules: set[str]) -> set[str]:
    """All modules of ours that a file names in an import, in function bodies and for type checkers, too."""
    named: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            named |= {f"{node.module}.{alias.name}" for alias in node.names}
    known = {name if name in modules else name.rpartition(".")[0] for name in named}
    return known & modules - {module_of(path), "launchyard"}


def circles(edges: Mapping[str, set[str]]) -> set[tuple[str, ...]]:
    """Groups of modules that reach each other."""

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            new = edges[todo.pop()] - seen
            seen |= new
            todo += new
        return seen

    reached = {name: reach(name) for name in edges}
    inside = [name for name in edges if name in reached[name]]
    return {
        tuple(sorted(other for other in inside if other in reached[name] and name in reached[other])) for name in inside
    }


def test_imports_form_no_circle() -> None:
    modules = {module_of(path) for path in PRODUCT}
    found = circles({module_of(path): imports_of(path, modules) for path in PRODUCT})
    refuse([" ".join(circle) for circle in sorted(found - CIRCLES)], "modules import each other in a circle")
    assert not CIRCLES - found, "these are circles no more: take them out of the table"


@pytest.mark.parametrize(
    ("edges", "expected"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, set()),
        ({"a": {"b"}, "b": {"a"}, "c": {"a"}}, {("a", "b")}),
        ({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"e"}, "e": {"d"}}, {("a", "b", "c"), ("d", "e")}),
    ],
)
def test_circles_are_seen(edges: dict[str, set[str]], expected: set[tuple[str, ...]]) -> None:
    assert circles(edges) == expected
