"""The docs say what the code does: the reference is made from it, links lead somewhere, commands exist and work."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

from launchyard import errors
from launchyard.launcher.cli.schema import schema_text
from tests.support.shell import Shell

ROOT = Path(__file__).parents[1]
DOCS = sorted([*ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md")])
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
# What stands before KEY=VALUE and options: a recipe's name, a path, or a place for one of them.
RECIPE = re.compile(r"RECIPE|.*[/.].*")


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load_generator()


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def run_python(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_the_reference_is_what_the_code_says() -> None:
    done = run_python("docs/generate.py", "--check")  # by itself: click remembers how a command was called before
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["recipe", "cluster"])
def test_every_key_is_described(kind: str) -> None:
    """Sections by the docstring of their class, all other keys by more than their own name."""
    schema = json.loads(schema_text(kind))
    for part in (schema, *schema["$defs"].values()):
        for key, value in part["properties"].items():
            said = value.get("description") or " ".join(described_by(value, schema["$defs"]))
            words = set(re.findall(r"[a-z0-9]+", said.lower())) - {"modelconfig"}
            assert words - {*key.lower().split("_"), key.lower()}, f"{kind}: {key} is described as {said!r}"


def described_by(value: Any, parts: dict[str, Any]) -> Iterator[str]:
    """Descriptions of the sections that a key without one of its own holds."""
    for one in (value, *value.get("anyOf", ())):
        if "$ref" in one:
            yield parts[one["$ref"].rpartition("/")[2]].get("description", "")


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for target in LINK.findall(text):
        file, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), f"{name_of(path)} links to {target}"
        if anchor:
            assert anchor in anchors(found), f"{name_of(path)} links to {target}, and {file} has no such heading"


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands_in(path: Path) -> list[list[str]]:
    """Every `launch …` that a page shows, as words."""
    found = []
    for block in CODE.findall(path.read_text()):
        for line in block.strip("`").replace("\\\n", " ").splitlines():
            said = re.match(r"(?:\s*\$ )?(?:\.venv/bin/)?launch ([^#…|]+)", line.strip())
            if said:
                found.append(shlex.split(said[1].replace("'", "").replace('"', "")))
    return found


def positionals(words: list[str], command: click.Command) -> tuple[list[str], list[str]]:
    """(options, other words) of a command line of ours."""
    flags = {name: option for option in command.params if isinstance(option, click.Option) for name in option.opts}
    flags |= {
        name: option for option in command.params if isinstance(option, click.Option) for name in option.secondary_opts
    }
    options, others, rest = [], [], iter(words)
    for word in rest:
        if word.startswith("-"):
            name = word.split("=")[0]
            options.append(name)
            known = flags.get(name)
            if known is not None and not known.is_flag and not known.count and "=" not in word:
                next(rest, None)
        else:
            others.append(word)
    return [name for name in options if name not in flags and name not in ("--help", "-h")], others


@pytest.mark.parametrize("path", [p for p in DOCS if name_of(p) != "docs/reference/cli.md"], ids=name_of)
def test_commands_exist(path: Path) -> None:
    root = generate.root_command()
    context = root.make_context("launch", [], resilient_parsing=True)
    for words in commands_in(path):
        command = root.get_command(context, words[0])
        if command is None:
            unknown, others = positionals(words, generate.launching_command(context))
            bundled = {
                p.relative_to(ROOT / "recipes").with_suffix("").as_posix() for p in ROOT.glob("recipes/**/*.yaml")
            }
            first = next((word for word in others if "=" not in word), None)
            assert first is None or first in bundled or RECIPE.fullmatch(first), f"launch {' '.join(words)}: no command"
        else:
            unknown, _ = positionals(words[1:], command)
        assert not unknown, f"{name_of(path)} shows launch {' '.join(words)}: no option {unknown}"


def test_the_family_of_the_guide_is_the_one_in_the_zoo() -> None:
    """A block whose first line is a path shows lines of that file."""
    guide = (ROOT / "docs/guides/add-a-family.md").read_text()
    shown = re.findall(r"```\n# ([\w./]+\.py)\n(.*?)```", guide, re.DOTALL)
    assert len(shown) > 5
    for path, lines in shown:
        assert lines in (ROOT / path).read_text(), f"{path} has no {lines}"


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_tests_that_are_named_are_there(path: Path) -> None:
    for file, name in re.findall(r"`(tests/[\w/.]+\.py)::(\w+)`", path.read_text()):
        assert re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file}::{name}"


def test_exit_codes_are_told() -> None:
    text = (ROOT / "docs" / "reference" / "exit-codes.md").read_text()
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert codes == {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}


@pytest.mark.parametrize(
    "before", ["", "import launchyard.model.weights.load", "import launchyard.launcher.watch.finetune"]
)
def test_the_python_door_opens(before: str) -> None:
    """`from launchyard import load`, as the docs show it, gives the function whatever was imported before."""
    done = run_python(
        "-c", f"{before}\nfrom launchyard import finetune, load\nassert callable(load) and callable(finetune)"
    )
    assert done.returncode == 0, done.stderr


# -- commands as typed -----------------------------------------------------------------------------------------------
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/guides/*.md"))]
# What needs minutes of trying, a run that is alive, a client, a chat model, files of a user, an S3 server, a hub or
# hardware; the journeys and the tests of each command do these.
NOT_HERE = re.compile(
    r"launch (monitor|bench|tune|serve|chat|stop|cancel|drill|resume|logs -f|sandbox|"
    r"profile latest --steps|"
    r".*(HuggingFaceTB|--gpus-per-node|sandbox-s3|s3://|mysite|myray|sandbox-ray|sandbox-slurm|questions.jsonl|my-task.yaml|SWEEP))\b"
)
TINY = (
    "model.dim=32 model.n_layers=1 model.n_heads=2 model.ffn_dim=64 data.seq_len=16 train.max_steps=2 train.device=cpu"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A clone as far as commands can tell, where the names that the guides use stand for something."""
    shell = Shell(tmp_path_factory.mktemp("docs"))
    (shell.here / "recipes").symlink_to(ROOT / "recipes")
    text = (ROOT / "recipes/quickstart/emma.txt").read_text()
    (shell.here / "tokenizer.json").symlink_to(ROOT / "recipes/quickstart/tokenizer.json")
    (shell.here / "corpus").mkdir()
    (shell.here / "corpus/emma.txt").write_text(text[:40_000])
    (shell.here / "more.jsonl").write_text(json.dumps({"text": text[:900]}) + "\n")
    (shell.here / "web").mkdir()
    write_parquet(shell.here / "web/one.parquet", [text[:700], text[700:1400]])
    own = re.search(
        r"```yaml\n(# my-model.yaml.*?)```", (ROOT / "docs/guides/your-own-model.md").read_text(), re.DOTALL
    )
    assert own is not None
    (shell.here / "my-model.yaml").write_text(own[1])
    type_in(shell, lines_to_type(ROOT / "docs/guides/prepare-data.md")[0])  # makes data/corpus, for the other guides
    type_in(shell, f"launch quickstart --run-url runs/my-model-ab12 data.source=data/corpus {TINY}")
    type_in(shell, "launch export latest --to hf --out path/to/hf-directory")
    return shell


def write_parquet(path: Path, texts: list[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)


def type_in(shell: Shell, line: str, *, dry: bool = False) -> None:
    """A line in bash, as it stands on the page; `dry`: launches and resumes nothing."""
    extra = "--dry-run" if dry and "--dry-run" not in line else ""
    words = f'launch() {{ "{sys.executable}" -m launchyard.launcher.cli.main "$@" {extra}; }}\n{line}'
    done = subprocess.run(
        ["bash", "-euc", words], cwd=shell.here, env=shell.env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def lines_to_type(path: Path) -> list[str]:
    """Every `launch …` that stands in a block by itself."""
    blocks = re.findall(r"```\n(.*?)```", path.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("launch ")]


def launches(line: str) -> bool:
    if line.split()[1] == "sweep":
        return True
    context = generate.root_command().make_context("launch", [], resilient_parsing=True)
    return generate.root_command().get_command(context, line.split()[1]) is None


# The README types the quickstart too; the others take longest.
LONG = ("quickstart.md", "generate-and-export.md", "evaluate.md")
TYPED = [pytest.param(path, marks=[pytest.mark.slow] if path.name in LONG else []) for path in PAGES]


@pytest.mark.parametrize("path", TYPED, ids=name_of)
def test_commands_work_as_typed(path: Path, place: Shell) -> None:
    """Every cheap one, in order; what would train is planned. Then the Python of the page."""
    for shown in lines_to_type(path):
        line = re.sub(r"\bRUN\b", "latest", shown)
        if not NOT_HERE.match(line):
            type_in(place, line, dry=launches(line))
    for code in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=place.here, env=place.env, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
