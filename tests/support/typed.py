"""`launch` as a person types it, in the process of the test: a folder with a recipe, a cluster file, and their runs.

Workers are the stand-in: the schedulers of tests/support tell agents so.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from launchyard.host.processes import end_marked, marked
from launchyard.launcher.cli.main import main
from launchyard.run.rundir import RunDir
from tests.support.small_runs import MODEL, write_data
from tests.support.standin import HERE

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "model": MODEL,
    "data": {"source": "tokens/train", "seq_len": 16},
    "train": {"max_steps": 1000, "global_batch_size": 8, "device": "cpu"},
    "metrics": {"prometheus": False},
    "resources": {"nproc_per_node": 1, "max_failures": 2},
}


class Place:
    """A working directory, user folders of its own, and a cluster file `site`."""

    def __init__(
        self, folder: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cluster: dict[str, Any]
    ) -> None:
        self.here, self.runs, self._capsys, self._patch = folder / "work", folder / "work/runs", capsys, patch
        self._cluster, self._urls = {"name": "site", "storage": str(self.runs), **cluster}, list[str]()
        self.here.mkdir()
        for kind in ("STATE", "CACHE", "CONFIG"):
            patch.setenv(f"XDG_{kind}_HOME", str(folder / kind.lower()))
        patch.setenv("PYTHONPATH", f"{HERE}:{HERE.parents[1] / 'src'}")
        patch.chdir(self.here)
        write_data(self.here / "tokens")
        (self.here / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
        self.clusters = folder / "config/launchyard/clusters"
        self.clusters.mkdir(parents=True)
        self.write_cluster()

    def write_cluster(self, **changes: Any) -> None:
        (self.clusters / "site.yaml").write_text(yaml.safe_dump({**self._cluster, **changes}))

    def workers_do(self, **plan: Any) -> None:
        """What the stand-in worker does; see there."""
        self._patch.setenv("LAUNCHYARD_STANDIN", json.dumps(plan))

    # -- launch --------------------------------------------------------------------------------------------------------
    def typed(self, *words: str) -> tuple[int, str]:
        """Exit code, and all that is printed, in lines as long as they are."""
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(words)
        said = self._capsys.readouterr()
        return int(end.value.code or 0), said.out + said.err

    def ok(self, *words: str, code: int = 0) -> str:
        ended, said = self.typed(*words)
        assert ended == code, f"launch {' '.join(words)}: {ended}\n{said}"
        return said

    def launch(self, *words: str, name: str = "run") -> Launched:
        """Submit a run; returns once its scheduler has taken it."""
        url = str(self.runs / name)
        self._urls.append(url)
        said = self.ok("tiny.yaml", "--cluster", "site", "--run-url", url, "--json", *words)
        return Launched(self, RunDir(url), str(json.loads(said)["run_id"]))

    def files(self) -> set[str]:
        return {str(path.relative_to(self.here)) for path in self.here.rglob("*")}

    def findings(self, *words: str, code: int = 0) -> dict[str, dict[str, str]]:
        """Of `launch doctor`, by what was looked at."""
        said = json.loads(self.ok("doctor", "--cluster", "site", "--json", *words, code=code))
        return {one["what"]: one for one in said["findings"]}

    def close(self) -> None:
        for url in self._urls:
            end_marked(url)


class Launched:
    """A run, and what a test waits for."""

    def __init__(self, place: Place, run: RunDir, run_id: str) -> None:
        self.place, self.run, self.run_id = place, run, run_id

    @property
    def job(self) -> str:
        newest = self.run.newest_submission()
        assert newest is not None
        return newest.job_id

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.place.ok("status", self.run_id, "--json")))

    def why(self) -> str:
        return " ".join(self.place.ok("why", self.run_id).split())

    def wait(self, done: Callable[[], Any], seconds: float = 40.0) -> Any:
        """Poll until something holds; fails with what the run looks like."""
        end = time.monotonic() + seconds
        while not (value := done()):
            assert time.monotonic() < end, self.looks()
            time.sleep(0.03)
        return value

    def looks(self) -> str:
        logs = sorted(Path(self.run.url).rglob("*.log"))
        return "\n".join(f"--- {path}\n{path.read_text(errors='replace')[-3000:]}" for path in logs)

    def steps(self, count: int = 3, *, attempt: int = 0) -> None:
        self.wait(lambda: sum(row["attempt"] == attempt for row in self.run.rows("steps")) >= count)

    def outcome(self, attempt: int | None = None) -> Any:
        """The last word about the run, or about one of its attempts."""
        return self.wait(lambda: self.run.outcome(attempt))

    def nothing_left(self) -> None:
        self.wait(lambda: not marked(self.run.url), 5)
