"""What must hold of a run, looked at past the proxy and past the workers: after every attempt, and at its end."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from launchyard.run.checkpoints import committed_steps
from launchyard.run.rundir import RunDir
from launchyard.storage import files
from launchyard.storage.shards import MANIFEST, Manifest, read_manifest, verify
from tests.chaos.plan import KEEP, STEPS
from tests.chaos.runs import Undisturbed
from tests.support.small_runs import EXACT, final_weights, history
from tests.support.store import Bucket


@dataclass
class Witness:
    """Remembers which checkpoints were whole, so that none goes without a reason."""

    run: RunDir
    expected: Undisturbed
    whole: set[int] = field(default_factory=set)

    def look(self) -> None:
        """Between two attempts; AssertionError says what was lost, repeated or corrupted."""
        self._look_at_checkpoints()
        self._look_at_rows()

    def _look_at_checkpoints(self) -> None:
        """All that are committed are whole; what has gone was superseded; the newest is never older than before."""
        found = self.surviving()
        for step, manifest in found.items():
            faults = list(verify(self.run.path(self.run.checkpoint_dir(step)), manifest))
            assert not faults, f"committed checkpoint {step} is not whole: {faults}"
        for gone in self.whole - found.keys():
            newer = [step for step in found if step > gone]
            assert len(newer) >= KEEP, f"checkpoint {gone} was whole and has gone; newer ones: {newer}"
        self.whole = set(found)

    def surviving(self) -> dict[int, Manifest]:
        """Committed checkpoints, without what came from an attempt after a later one had gone on from before it."""
        starts = self.run.starts()
        found = {}
        for step in committed_steps(self.run):
            manifest = read_manifest(self.run.path(self.run.checkpoint_dir(step)))
            if all(step <= start for number, start in starts.items() if number > manifest.attempt):
                found[step] = manifest
        return found

    def _look_at_rows(self) -> None:
        """No row of any attempt saw another batch; none is missing before the newest checkpoint; none is twice."""
        steps = [row["step"] for row in self.run.rows("steps")]
        newest = max(self.whole, default=0)
        assert steps[:newest] == [*range(1, newest + 1)], f"rows are missing before checkpoint {newest}: {steps}"
        assert steps == [*range(1, len(steps) + 1)], f"rows with holes: {steps}"
        for name in self.run.listdir("metrics"):
            if name.startswith("steps-"):
                for row in parse(self.run, f"metrics/{name}"):
                    wanted = self.expected.rows[row["step"]]["data_hash"]
                    assert row["data_hash"] == wanted, f"another batch in step {row['step']} of {name}"

    def look_at_start(self, attempt: int, newest: int) -> None:
        """An attempt that came so far went on from the newest checkpoint that was whole before it."""
        start = self.run.starts().get(attempt)
        assert start in (None, newest), f"attempt {attempt} went on from {start} although {newest} was whole"

    # -- at the end --------------------------------------------------------------------------------------------------
    def conclude(self, *, exact: bool) -> None:
        """The run is the run that was not disturbed."""
        outcome = self.run.outcome(self.run.attempts()[-1])
        assert outcome is not None and (outcome.outcome, outcome.step) == ("completed", STEPS), outcome
        assert max(self.whole) == STEPS
        expected = [tuple(row[key] for key in EXACT) for row in self.expected.rows.values()]
        mine = history(self.run)
        assert [row[0] for row in mine] == [*range(1, STEPS + 1)]
        assert [row[-1] for row in mine] == [row[-1] for row in expected]
        validation = {row["step"]: row["loss"] for row in self.run.rows("validation")}
        weights = final_weights(self.run)
        assert weights.keys() == self.expected.weights.keys()
        if exact:
            assert mine == expected
            assert validation == self.expected.validation
            different = [key for key, value in weights.items() if not torch.equal(value, self.expected.weights[key])]
            assert not different, f"final tensors that are not bit-equal: {different}"
        else:
            assert [row[1] for row in mine] == pytest.approx([row[1] for row in expected], rel=1e-5)
            assert validation == pytest.approx(self.expected.validation, rel=1e-5)
            for key, value in weights.items():
                # biases of keys have no gradient but rounding, which Adam makes steps of
                torch.testing.assert_close(value, self.expected.weights[key], rtol=1e-3, atol=3e-4)

    def look_for_remains(self, bucket: Bucket) -> None:
        """Nothing is left of what was killed: no open upload, no file that no manifest names."""
        assert bucket.uploads() == []
        surviving = self.surviving()
        named = {f"step-{step:08d}": {MANIFEST, *manifest.files} for step, manifest in surviving.items()}
        for folder in self.run.listdir("checkpoints"):
            if folder.startswith("step-"):
                there = set(self.run.listdir(f"checkpoints/{folder}"))
                left = there - named.get(folder, set())
                assert not left, f"checkpoints/{folder} holds what nothing names: {sorted(left)}"


def parse(run: RunDir, name: str) -> list[dict[str, object]]:
    from launchyard.storage.damage import parse_lines

    return parse_lines(files.read(run.path(name)), lambda row: True)[0]
