"""A loss that is no number stops the run, and its error names the very samples, so that they can be looked at."""

from __future__ import annotations

from pathlib import Path

from launchyard.training.data.dataset_spec import mix
from launchyard.training.data.reader import TokenReader
from launchyard.training.data.token_store import TokenStore
from tests.support.small_runs import make_run, start_workers, write_data


def test_the_samples_of_a_mixture_are_named(tmp_path: Path) -> None:
    one, two = write_data(tmp_path / "one"), write_data(tmp_path / "two", n_tokens=600, seed=2)
    spec = mix([one, two], [3, 1])
    run = make_run(tmp_path / "run", spec, {"optimizer.lr": 1e30, "schedule.warmup_steps": 0})
    (process,) = start_workers(run, 1)
    assert process.wait(timeout=60) != 0
    (error,) = run.errors(0)
    assert error["type"] == "NonFiniteError"
    step = int(error["message"].removeprefix("step ").split(":")[0]) - 1
    stores = [TokenStore(source.folder) for source in spec.train]
    read = TokenReader(stores, weights=[3, 1], seq_len=16, global_batch_size=12, seed=3).sample_ids(step, 0, 12)
    for number, source in enumerate(spec.train):
        samples = ", ".join(str(sample) for found, sample in read if found == number)
        assert f"samples {samples} of {source.folder}" in error["message"]
