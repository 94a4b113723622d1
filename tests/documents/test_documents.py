"""Each command of four documents, in the order of the document, typed as it is spelled here.

A document is a file of blocks. A block is the original lines behind `#>`, then ours, which bash runs in the clean
folder. A line of `#` says why ours are others.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from launchyard.host.processes import python_argv
from tests.documents.place import clean_folder
from tests.support.shell import Shell

HERE = Path(__file__).parent
PROLOGUE = """
launch() { "${PYTHON[@]}" -m launchyard "$@"; }
served() { for _ in $(seq 300); do test -s "$1" && return; sleep 0.1; done; return 1; }
"""


@dataclass(frozen=True)
class Block:
    """`original`: what the document shows; `ours`: what is typed here."""

    original: str
    ours: str


def blocks_of(path: Path) -> list[Block]:
    found = []
    for part in re.split(r"\n\n(?=#)", path.read_text()):
        lines = part.strip("\n").splitlines()
        original = "\n".join(line[2:].strip() for line in lines if line.startswith("#>"))
        ours = "\n".join(line for line in lines if not line.startswith("#"))
        if ours:
            found.append(Block(original, ours))
    return found


def type_in(shell: Shell, block: Block) -> None:
    python = " ".join(f'"{word}"' for word in python_argv(sys.executable))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"PYTHON=({python})\n{PROLOGUE}\n{block.ours}"],
        cwd=shell.here,
        env=shell.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, f"{block.original}\n--- ours\n{block.ours}\n---\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["lightgpt-card", "litgpt-walk-through", "lightning-article", "litgpt-skill"])
def test_a_document_works_as_typed(name: str, tmp_path: Path) -> None:
    with clean_folder(tmp_path) as shell:
        for block in blocks_of(HERE / f"{name}.sh"):
            type_in(shell, block)


@pytest.mark.parametrize("path", sorted(HERE.glob("*.sh")), ids=lambda path: path.stem)
def test_each_block_has_its_original(path: Path) -> None:
    found = blocks_of(path)
    assert len(found) > 8
    assert all(block.original for block in found)
