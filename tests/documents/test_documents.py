"""Each command of four documents, in the order of the document, typed as it is spelled here.

A document is a file of blocks. A block is the original lines behind `#>`, then ours, which bash runs in the clean
folder; blocks of the sample begin with `#>>`. A line of `#` says why ours are others.
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
DOCUMENTS = sorted(path.stem for path in HERE.glob("*.sh"))
PROLOGUE = """
launch() {
    # In the background it is this very process, so that a kill ends it.
    if [[ $BASHPID != "$$" ]]; then exec "${PYTHON[@]}" -m launchyard "$@"; fi
    "${PYTHON[@]}" -m launchyard "$@"
}
served() { for _ in $(seq 300); do test -s "$1" && return; sleep 0.1; done; return 1; }
"""


@dataclass(frozen=True)
class Block:
    """`original`: what the document shows; `ours`: what is typed here."""

    original: str
    ours: str
    sampled: bool


def blocks_of(path: Path) -> list[Block]:
    found = []
    for part in re.split(r"\n\n(?=#)", path.read_text()):
        lines = part.strip("\n").splitlines()
        quoted = [line for line in lines if line.startswith("#>")]
        original = "\n".join(line.lstrip("#> ") for line in quoted)
        ours = "\n".join(line for line in lines if not line.startswith("#"))
        if ours:
            found.append(Block(original, ours, any(line.startswith("#>>") for line in quoted)))
    return found


def fault_of(shell: Shell, block: Block) -> str:
    """What is wrong with a block; nothing if its commands end well."""
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
    if done.returncode == 0:
        return ""
    return f"{block.original}\n--- ours\n{block.ours}\n--- {done.returncode}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sample_of_each_document_works_as_typed(tmp_path: Path) -> None:
    blocks = [block for name in DOCUMENTS for block in blocks_of(HERE / f"{name}.sh") if block.sampled]
    with clean_folder(tmp_path) as shell:
        faults = [fault for block in blocks if (fault := fault_of(shell, block))]
    assert not faults, "\n\n".join(faults)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_works_as_typed(name: str, tmp_path: Path) -> None:
    with clean_folder(tmp_path) as shell:
        faults = [fault for block in blocks_of(HERE / f"{name}.sh") if (fault := fault_of(shell, block))]
    assert not faults, "\n\n".join(faults)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_each_block_has_its_original(name: str) -> None:
    found = blocks_of(HERE / f"{name}.sh")
    assert len(found) > 8
    assert all(block.original for block in found)
    assert any(block.sampled for block in found)
