"""Tokens that lie in S3: the first batch, all of them cold, the speed once they are cached, a seek to a far step.

    python benchmarks/streamed.py [--tokens 100_000_000] [--rounds 5] [--peers PYTHON]

A real S3 server (`weed`, see launcher/sandbox) runs on this machine for as long as it takes. Beside ours in the same
rounds: the same reader on local chunks, a plain memmap, and, if --peers names a Python that has them, litdata's
StreamingDataset and mosaicml-streaming (benchmarks/streamed_peers.py). One process; batches of 8 × 2048 as int64.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loader import memmap, rate, write

from launchyard.launcher.sandbox.s3 import weed
from launchyard.storage import files
from launchyard.training.data.cache.chunk_cache import ChunkCache
from launchyard.training.data.reader import Prefetcher, TokenReader
from launchyard.training.data.token_store import TokenStore

BATCH, LENGTH = 8, 2048
FAR = 10**9
BUCKET = "benchmark"


@contextmanager
def server(folder: Path) -> Iterator[int]:
    """S3 on loopback, and the variables that lead to it; its process."""
    keys, ports = weed.Keys("AKIABENCHMARK", "only-for-this-benchmark"), weed.draw_ports()
    process = weed.start(folder, keys=keys, ports=ports, bucket=BUCKET, tied=True)
    try:
        weed.wait_ready(process, folder, keys=keys, ports=ports, bucket=BUCKET)
        os.environ |= {
            "AWS_ENDPOINT_URL": weed.endpoint_of(ports), "S3_ENDPOINT_URL": weed.endpoint_of(ports),
            "AWS_ACCESS_KEY_ID": keys.access_key, "AWS_SECRET_ACCESS_KEY": keys.secret_key,
            "AWS_REGION": weed.REGION, "AWS_DEFAULT_REGION": weed.REGION, "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip
        yield process.pid
    finally:
        process.terminate()
        process.wait()
        weed.clear_sockets(ports)


def reader(folder: str, cache: Path) -> TokenReader:
    store = TokenStore(folder, cache=ChunkCache(str(cache), quota=2**40))
    return TokenReader([store], seq_len=LENGTH, global_batch_size=BATCH, seed=1)


def first_batch(folder: str, cache: Path, step: int) -> float:
    """Seconds from nothing to a batch."""
    began = time.perf_counter()
    with Prefetcher(reader(folder, cache), start_step=step, stop_step=step + 1) as feed:
        next(feed)
    return time.perf_counter() - began


def one_round(local: Path, url: str, flat: Any, steps: int, cache: Path) -> dict[str, float]:
    tokens = steps * BATCH * LENGTH
    shutil.rmtree(cache, ignore_errors=True)
    found = {"first_batch_cold_seconds": first_batch(url, cache, 0)}
    shutil.rmtree(cache)
    began = time.perf_counter()
    cold = reader(url, cache)
    with Prefetcher(cold, stop_step=steps) as feed:
        found["cold_mtokens_per_second"] = rate(lambda: [None for _ in feed], tokens) / 1e6
    found["cold_pass_seconds"] = time.perf_counter() - began
    found["seek_cached_seconds"] = first_batch(url, cache, FAR)
    cached, mapped = reader(url, cache), reader(str(local / "train"), cache)
    for one in (cached, mapped):
        one.batch(0)
    found["cached_mtokens_per_second"] = rate(lambda: [cached.batch(step) for step in range(steps)], tokens) / 1e6
    found["local_mtokens_per_second"] = rate(lambda: [mapped.batch(step) for step in range(steps)], tokens) / 1e6
    found["memmap_mtokens_per_second"] = rate(lambda: memmap(flat, BATCH, LENGTH, steps), tokens) / 1e6
    shutil.rmtree(cache)
    found["seek_cold_seconds"] = first_batch(url, cache, FAR)
    return found


def peers(python: str, local: Path, steps: int, folder: Path) -> dict[str, float]:
    script = str(Path(__file__).with_name("streamed_peers.py"))
    shutil.rmtree(folder, ignore_errors=True)
    argv = [python, "-W", "ignore", script, str(local), f"s3://{BUCKET}", str(folder), str(steps)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=900)
    if done.returncode:
        sys.exit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=100_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", metavar="PYTHON", help="with litdata and mosaicml-streaming")
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps = options.tokens // (BATCH * LENGTH) // 2
    with tempfile.TemporaryDirectory() as temporary, server(Path(temporary, "s3")):
        local, url = Path(temporary, "data"), f"s3://{BUCKET}/data/train"
        write(str(local / "train"), options.tokens)
        for path in (local / "train").iterdir():
            files.write(f"{url}/{path.name}", path.read_bytes())
        whole = TokenStore(str(local / "train"))
        whole.read(0, whole.n_tokens).tofile(local / "flat.bin")
        flat = np.memmap(local / "flat.bin", dtype=np.uint16, mode="r")
        rounds = []
        for _ in range(options.rounds):
            found = one_round(local, url, flat, steps, Path(temporary, "cache"))
            if options.peers:
                found |= peers(options.peers, local, steps, Path(temporary, "peers"))
            rounds.append(found)
    print(json.dumps({"tokens": options.tokens, **summary(rounds)}, indent=1))


def summary(rounds: list[dict[str, float]]) -> dict[str, list[float]]:
    """Median, least and most of each figure."""
    return {
        name: [round(of(one[name] for one in rounds), 4) for of in (statistics.median, min, max)] for name in rounds[0]
    }


if __name__ == "__main__":
    main()
