"""A run whose tokens come through the cache of chunks trains on the same ones as a run that maps them in place."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from launchyard.run.rundir import RunDir
from launchyard.training.spec import DataSpec, Storage, TokenSource
from tests.support.small_runs import history, make_run, run_workers, start_workers, write_data
from tests.training.telemetry.test_metrics import scrape


def elsewhere(data: DataSpec) -> DataSpec:
    """The same data, as if in a store."""

    def moved(sources: tuple[TokenSource, ...]) -> tuple[TokenSource, ...]:
        return tuple(one.model_copy(update={"folder": f"local://{one.folder}"}) for one in sources)

    return data.model_copy(update={"train": moved(data.train), "validation": moved(data.validation)})


def set_storage(run: RunDir, storage: Storage) -> None:
    run.write_json("plan.json", {**run.read_json("plan.json"), "storage": storage.model_dump(mode="json")})


@pytest.mark.slow
@pytest.mark.parametrize("cache_bytes", [1, 2**30])
def test_tokens_out_of_a_store(tmp_path: Path, cache_bytes: int) -> None:
    data = write_data(tmp_path / "data")
    local = make_run(tmp_path / "local", data)
    run_workers(local, 1)
    streamed = make_run(tmp_path / "streamed", elsewhere(data))
    set_storage(streamed, Storage(cache=str(tmp_path / "cache"), cache_bytes=cache_bytes))
    run_workers(streamed, 2, {"train.max_steps": 11})
    for copy in (tmp_path / "cache").glob("*/*.bin"):  # a bit flips on this disk
        raw = bytearray(copy.read_bytes())
        raw[100] ^= 1
        copy.write_bytes(raw)
    run_workers(streamed, 1)
    exact = ("step", "tokens_seen", "data_hash")
    assert history(streamed, exact) == history(local, exact)
    told = [event["message"] for attempt in (0, 1) for event in streamed.events(attempt) if "message" in event]
    assert any("has no digests.json" in text for text in told)
    assert any("cache_size" in text for text in told) == (cache_bytes == 1)
    assert any("is damaged: dropped, and fetched again" in text for text in told) == (cache_bytes > 1)
    assert not list((tmp_path / "cache").glob("*/*.part"))


@pytest.mark.slow
def test_metrics_of_the_cache(tmp_path: Path) -> None:
    data = elsewhere(write_data(tmp_path / "data"))
    run = make_run(tmp_path / "run", data, {"train.max_steps": 100_000, "metrics.prometheus": True})
    set_storage(run, Storage(cache=str(tmp_path / "cache")))
    processes = start_workers(run, 2)
    try:
        end = time.monotonic() + 60
        while len(list(run.rows("steps"))) < 60:  # all of the data, and more
            assert time.monotonic() < end and all(process.poll() is None for process in processes)
            time.sleep(0.05)
        workers = [scrape(target.url) for target in run.targets(0)]
        assert len(workers) == 2

        def total(name: str) -> float:
            return sum(series[f"trainer_data_{name}"] for series in workers)

        assert total("cache_misses_total") == 3
        assert total("cache_hits_total") == 3
        assert total("bytes_total") == 3 * 12 + 2 * 2501
        assert total("retries_total") == total("cache_damaged_total") == 0
        assert total("chunk_wait_seconds_total") > 0
    finally:
        for process in processes:
            process.kill()
            process.wait()
