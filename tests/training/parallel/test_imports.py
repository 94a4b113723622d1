"""Workers that are forked from a server import nothing heavy: each would do it for itself, at every start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launchyard.host.ports import free_port
from tests.support.small_runs import claim, make_run, write_data

FORKS = """
import json, os, sys
import launchyard.training.imports.first
import launchyard.training.imports.later
if int(os.environ["WORLD_SIZE"]) > 1:
    import launchyard.training.imports.sharded
from launchyard.training import worker

known = set(sys.modules)
children = []
for rank in range(int(os.environ["WORLD_SIZE"])):
    children.append(os.fork())
    if children[-1] == 0:
        os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
        code = worker.main(["worker", sys.argv[1]])
        with open(f"{sys.argv[2]}/{rank}.json", "w") as file:
            json.dump(sorted(name for name in set(sys.modules) - known if name.startswith("torch.")), file)
        os._exit(code)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_a_forked_worker_finds_torch_imported(tmp_path: Path, n_ranks: int) -> None:
    """To the end of a run that validates, saves and writes its weights; 900 modules of torch came with FSDP before."""
    run = make_run(tmp_path / "run", write_data(tmp_path / "data"), {"train.max_steps": 3, "checkpoint.every_steps": 2})
    attempt = claim(run, n_ranks, {})
    world = {"WORLD_SIZE": n_ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    env = {**os.environ, "OMP_NUM_THREADS": "1", "LAUNCHYARD_ATTEMPT": str(attempt)}
    env |= {name: str(value) for name, value in world.items()}
    subprocess.run([sys.executable, "-c", FORKS, run.url, str(tmp_path)], env=env, check=True, timeout=120)
    imported = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(n_ranks)]
    assert len(list(run.rows("steps"))) == 3
    assert max(map(len, imported)) < 20, imported
