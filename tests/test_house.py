"""The rules of the house that no linter knows: what is light, who reads the environment, how long a file may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("src", "host", "storage", "run", "model", "training", "launcher")
CODE = sorted(path for room in (*ROOMS, "benchmarks", "docs", "tests") for path in ROOT.glob(f"{room}/**/*.py"))
PRODUCT = [path for path in CODE if path.relative_to(ROOT).parts[0] in ROOMS]

LIGHT_FILES = (
    "launcher/**/*.py",
    "src/**/*.py",
    "host/*.py",
    "storage/**/*.py",
    "run/*.py",
    "training/profile/digest.py",
    "training/profile/requests.py",
    "training/profile/tables.py",
    "training/recipe.py",
    "training/sections/*.py",
    "training/spec.py",
    "training/trial/spec.py",
    "training/batching.py",
    "training/checkpoint/slots.py",
    "training/own/*.py",
    "training/notify/*.py",
    "training/optim/groups.py",
    "training/optim/state_size.py",
    "training/telemetry/metric_table.py",
    "training/telemetry/phases.py",
    "training/telemetry/buckets.py",
    "training/telemetry/spikes.py",
    "training/telemetry/exporter.py",
    "training/telemetry/heartbeat.py",
    "training/telemetry/stragglers.py",
    "training/telemetry/trackers/*.py",
    "training/data/index.py",
    "training/data/dataset_spec.py",
    "training/data/built_in.py",
    "model/adapt/forms.py",
    "model/adapt/targets.py",
    "model/adapter.py",
    "model/config.py",
    "model/cost.py",
    "model/devices.py",
    "model/initial.py",
    "model/layout.py",
    "model/precision.py",
    "model/memory.py",
    "model/speed.py",
    "model/parallel/share.py",
    "model/serve/matrices/names.py",
    "model/text/chat_template.py",
    "model/text/companions.py",
    "model/text/find.py",
    "model/text/prompt_styles.py",
    "model/text/sentencepiece_file.py",
    "model/text/splits.py",
    "model/text/tiktoken_file.py",
    "model/text/tokenizer_json.py",
    "model/text/special_tokens.py",
    "model/text/templates.py",
    "model/weights/adapters/facts.py",
    "model/weights/adapters/peft_config.py",
    "model/weights/adapters/peft_keys.py",
    "model/weights/facts.py",
    "model/weights/headers.py",
    "model/weights/source.py",
    "model/weights/tie.py",
    "model/zoo/**/*.py",
)
LIGHT = sorted(
    path
    for path in {path for pattern in LIGHT_FILES for path in ROOT.glob(pattern)}
    if "dashboards" not in path.parts  # a tool of ours, which needs the SDK of Grafana
)
# All that a light file may load as it is imported, besides the standard library and other light files.
LIGHT_PACKAGES = {"click", "pydantic", "pydantic_core", "yaml", "platformdirs"}
# Names that must not be in memory after the launcher has started.
HEAVY = (
    "torch",
    "numpy",
    "fsspec",
    "rich",
    "jinja2",
    "prometheus_client",
    "ray",
    "submitit",
    "s3fs",
    "transformers",
    "tokenizers",
    "safetensors",
    "pyarrow",
    "huggingface_hub",
)

ENVIRONMENT_READERS = {"training/distributed.py", "host/environment.py"}
NO_NAMES = {"utils.py", "helpers.py", "common.py", "misc.py"}
# An __init__.py is a docstring; these few hold the one function by which their folder is used.
SPEAKING_INITS = {
    "src/launchyard/__init__.py",
    "model/zoo/__init__.py",
    "launcher/sandbox/__init__.py",
}
PICKLES = {"pickle", "cloudpickle", "dill", "shelve", "marshal"}
MAX_FILE = 500  # lines
MAX_FUNCTION = 60  # lines


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    name = name_of(path).removesuffix(".py").removesuffix("/__init__").removeprefix("src/")
    return name.replace("/", ".") if name.startswith("launchyard") else f"launchyard.{name.replace('/', '.')}"


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def functions_of(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def refuse(offenders: list[str], rule: str) -> None:
    """Fails with the rule and every file:line that breaks it."""
    assert not offenders, "\n  ".join([rule, *offenders])


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# -- what is light ---
def imports_at_start(body: list[ast.stmt]) -> Iterator[tuple[int, str]]:
    """(line, module) of what is loaded as a file is imported: not in function bodies, nor for type checkers only."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports name their module in full"
            yield node.lineno, node.module or ""
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for field in ("body", "orelse", "finalbody", "handlers"):
                children = getattr(node, field, [])
                yield from imports_at_start([c for c in children if isinstance(c, (ast.stmt, ast.ExceptHandler))])


def is_light(module: str) -> bool:
    top = module.split(".")[0]
    if top in sys.stdlib_module_names or top in LIGHT_PACKAGES:
        return True
    path = ROOT / module.removeprefix("launchyard").removeprefix(".").replace(".", "/")
    return path.is_dir() or path.with_suffix(".py") in LIGHT or module == "launchyard.errors"


def test_light_files_load_light_things_only() -> None:
    heavy = [
        f"{name_of(path)}:{line}: {module}"
        for path in LIGHT
        for line, module in imports_at_start(tree_of(path).body)
        if not is_light(module)
    ]
    refuse(heavy, "light files: import what is heavy inside the function that needs it")


def test_the_launcher_starts_without_heavy_packages() -> None:
    modules = [module_of(path) for path in LIGHT if path.name != "__main__.py"]
    code = f"""
import importlib, sys
for module in {modules!r}:
    importlib.import_module(module)
    heavy = [name for name in {HEAVY!r} if name in sys.modules]
    if heavy:
        print(module, "loads", *heavy)
        break
"""
    assert run_python(code) == ""


@pytest.mark.parametrize(
    ("argv", "refused"),
    [(["--help"], ["pydantic", "yaml"]), (["--version"], ["pydantic", "yaml"]), (["status", "--help"], [])],
)
def test_help_loads_no_heavy_packages(argv: list[str], refused: list[str]) -> None:
    code = f"""
import contextlib, io, sys
sys.argv = ["launch", *{argv!r}]
from launchyard.launcher.cli.main import main
with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
    main()
assert out.getvalue(), "printed nothing"
print(*[name for name in {(*HEAVY, *refused)!r} if name in sys.modules])
"""
    assert run_python(code) == ""


# -- who does what ---
def reads_environment(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom) and node.module == "os":
        return any(alias.name in ("environ", "environb", "getenv") for alias in node.names)
    return isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.environb", "os.getenv")


def test_the_environment_is_read_in_few_places() -> None:
    readers = [
        f"{name_of(path)}:{node.lineno}"
        for path in PRODUCT
        if name_of(path) not in ENVIRONMENT_READERS
        for node in ast.walk(tree_of(path))
        if reads_environment(node)
    ]
    refuse(readers, f"the environment is read by {', '.join(sorted(ENVIRONMENT_READERS))} only")


# What only one file of the product says, since a second place would drift from it.
HOMES = {
    "locks": ("host/locks.py", r"\bfcntl\b"),
    "the user's folders": ("host/folders.py", r"\bimport platformdirs\b"),
    "names of our variables": ("host/environment.py", r"LAUNCHYARD_"),
    "the range of ports": ("host/ports.py", r"\b61000\b"),
    "children that die with us": ("host/processes.py", r"PDEATHSIG"),
    "atomic local writes": ("storage/local.py", r"os\.link\(|token_hex\(\d+\)\}\.tmp|\.tmp\", \"w"),
    "redaction": ("storage/redact.py", r"://\)?\[\^/@"),
    "backoff": ("storage/retry.py", r"\*\* ?(min\()?tries"),
}


def test_each_of_these_things_has_one_home() -> None:
    for what, (home, pattern) in HOMES.items():
        found = {name_of(path) for path in PRODUCT if re.search(pattern, path.read_text())}
        assert home in found, f"{what}: the pattern does not find its home"
        assert found == {home}, f"{what}: {found - {home}} should use {home}"


def pickles(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name in PICKLES for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        return node.module in PICKLES
    return isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "torch.save")


OF_OTHERS = "model/weights/stored/pickled.py"  # reads .bin files that are given to us


def runs_no_code(node: ast.AST) -> bool:
    """True for an error's import, and for a load of weights alone."""
    if isinstance(node, ast.ImportFrom):
        return [alias.name for alias in node.names] == ["UnpicklingError"]
    return isinstance(node, ast.Call) and "weights_only=True" in ast.unparse(node)


def test_no_pickle() -> None:
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path in PRODUCT
        for node in ast.walk(tree_of(path))
        if pickles(node) and not (name_of(path) == OF_OTHERS and runs_no_code(node))
    ]
    refuse(found, "no pickle; torch's own files are pickles, too: see storage/shards.py")


# -- a scheduler is one folder ---
SCHEDULERS = sorted(path.parent.name for path in ROOT.glob("launcher/backends/*/backend.py"))
# A name that is a word of every day counts only where it stands alone; SLURM and Ray count in any text.
EVERYDAY = {"local", "example"}
# Files that may name one, with the names and the reason.
NAMING = {
    "launcher/backends/section.py": {"local"},  # FIRST, the place of a launch that names none
    "launcher/agent/node.py": {"slurm"},  # SLURM_NODEID: srun gives each agent the same argv, and its number so
    "launcher/cli/main.py": {"slurm", "ray"},  # the help of `launch sandbox` lists its services
    "launcher/python/ray_train.py": {"local", "ray"},  # a program of a Ray that is somebody else's; local: its files
    "launcher/runs/why.py": {"ray"},  # reasons that stand in the outcome.json of runs: records.py
    "run/records.py": {"ray"},
    "run/layout.py": {"slurm", "ray"},  # who writes which file, in words
    "host/environment.py": {"slurm", "ray"},  # variables that are theirs, and do not reach our processes
    "training/recipe.py": {"slurm"},  # descriptions of keys that mean something in one place only
    "training/sections/resources.py": {"ray", "slurm"},
}
SERVICES = ("launcher/sandbox/", "launcher/cli/sandbox.py")  # starts real ones, and writes cluster files for them


def texts_in(tree: ast.Module) -> Iterator[ast.Constant]:
    """String constants that are no docstring."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented) and is_docstring(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node


def is_docstring(node: Any) -> bool:
    return bool(node.body) and isinstance(node.body[0], ast.Expr)


def named_in(text: str) -> set[str]:
    """Schedulers that a text names."""
    words = {word.lower() for word in re.findall(r"[A-Za-z]+", text)}
    return {name for name in SCHEDULERS if text == name or (name in words and name not in EVERYDAY)}


def foreign_names(path: Path) -> Iterator[str]:
    """Where a file names or imports a scheduler that is not its own."""
    own = {name for name in SCHEDULERS if name_of(path).startswith(f"launcher/backends/{name}/")}
    others = set(SCHEDULERS) - own - NAMING.get(name_of(path), set())
    tree = tree_of(path)
    for text in texts_in(tree):
        if found := named_in(text.value) & others:
            yield f"{name_of(path)}:{text.lineno} names {', '.join(sorted(found))}"
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found = {name for name in others if f"launcher.backends.{name}" in ast.unparse(node)}
            yield from (f"{name_of(path)}:{node.lineno} imports from the backend {name}" for name in found)


def test_a_scheduler_is_named_in_its_own_folder_only() -> None:
    """All else asks the backend that load_backend finds: see Traits in launcher/backends/base.py."""
    found = [said for path in PRODUCT if not name_of(path).startswith(SERVICES) for said in foreign_names(path)]
    assert not found, "\n".join(found)


def test_files_that_name_a_scheduler_still_do() -> None:
    for name, allowed in NAMING.items():
        found = set().union(*(named_in(node.value) for node in texts_in(tree_of(ROOT / name))))
        assert allowed <= found, f"{name} does not name {allowed - found} any more: take it off the list"


# -- shape ---
def test_a_file_has_a_name_and_a_purpose() -> None:
    refuse([name_of(path) for path in CODE if path.name in NO_NAMES], "name a file by what it is for")
    spoken = [path for path in CODE if path.parts[len(ROOT.parts)] != "tests"]
    silent = [name_of(path) for path in spoken if not ast.get_docstring(tree_of(path))]
    refuse(silent, "a file opens with a line that says what it is for")


def test_files_are_short() -> None:
    lines = {name_of(path): path.read_text().count("\n") for path in CODE}
    refuse([f"{name}: {n} lines" for name, n in lines.items() if n > MAX_FILE], f"a file has at most {MAX_FILE} lines")


def test_functions_are_short() -> None:
    lengths = [
        (f"{name_of(path)}:{f.lineno} {f.name}", f.end_lineno - f.lineno + 1)
        for path in CODE
        for f in functions_of(path)
        if f.end_lineno is not None
    ]
    long = [f"{where}: {n} lines" for where, n in lengths if n > MAX_FUNCTION]
    refuse(long, f"a function has at most {MAX_FUNCTION} lines")


def test_one_assignment_stands_on_a_line() -> None:
    packed = [
        f"{name_of(path)}:{node.lineno}"
        for path in PRODUCT
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple)
    ]
    refuse(packed, "one assignment a line; only a function's result is taken apart")


def test_inits_are_docstrings() -> None:
    inits = [path for path in PRODUCT if path.name == "__init__.py" and name_of(path) not in SPEAKING_INITS]
    refuse([name_of(path) for path in inits if len(tree_of(path).body) != 1], "an __init__.py is a docstring alone")
