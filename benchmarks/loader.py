"""Tokens per second from the local cache, side by side with a plain memmap; first batch; seek.

    python benchmarks/loader.py [--tokens 100_000_000] [--batch 8] [--seq-len 2048] [--rounds 7] [--out DIR]
                                [--peers litdata]

All read batches of (B, T + 1) random tokens in one process and hand them out as int64 tensors of inputs and labels.
Ours does so in its own order, and hashes what it hands out. Bounds of the memmap: its best possible order, no checks.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from results import Figures, over, tell

from launchyard.training.data.order import Order
from launchyard.training.data.prepare.writer import SplitWriter
from launchyard.training.data.reader import Prefetcher, TokenReader
from launchyard.training.data.token_store import TokenStore

CHUNK_TOKENS = 2**25


def write(folder: str, tokens: int) -> None:
    writer = SplitWriter(folder, chunk_tokens=CHUNK_TOKENS, dtype="uint16", eos_id=0)
    draw = np.random.default_rng(0)
    for start in range(0, tokens, 1 << 22):
        writer.add(draw.integers(1, 50_000, min(1 << 22, tokens - start), dtype=np.uint16))
        writer.end_document()
    writer.finish()


def memmap(flat: np.ndarray, batch: int, length: int, steps: int) -> None:
    """What a hand-written loop does: random places of one flat file."""
    draw = np.random.default_rng(1)
    for _ in range(steps):
        rows = np.stack([flat[at : at + length + 1] for at in draw.integers(0, len(flat) - length - 1, batch)])
        whole = torch.from_numpy(rows.astype(np.int64))
        _ = whole[:, :-1], whole[:, 1:]


def rate(run, tokens: int) -> float:
    began = time.perf_counter()
    run()
    return tokens / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=100_000_000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peers", nargs="+", default=[], choices=PEERS)
    parser.add_argument("--out", help="keep the data here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.out or temporary)
        if not (folder / "train" / "index.json").exists():
            write(str(folder / "train"), options.tokens)
        figures = measure(folder, options)
    for name, values in figures.items():
        print(f"{name:40} {statistics.median(values):10.4g}  ({min(values):.4g} to {max(values):.4g})")
    tell(figures)


def measure(folder: Path, options: argparse.Namespace) -> Figures:
    batch, length = options.batch, options.seq_len
    steps = max(1, options.tokens // (batch * length) // 4)
    per_round = steps * batch * length
    flat_file = folder / "flat.bin"
    if not flat_file.exists():
        store = TokenStore(str(folder / "train"))
        store.read(0, store.n_tokens).tofile(flat_file)
    flat = np.memmap(flat_file, dtype=np.uint16, mode="r")

    def fresh() -> TokenReader:
        return TokenReader([TokenStore(str(folder / "train"))], seq_len=length, global_batch_size=batch, seed=1)

    figures: Figures = {"first batch, s": []}
    for _ in range(options.rounds):
        began = time.perf_counter()
        reader = fresh()
        reader.batch(0)
        figures["first batch, s"].append(time.perf_counter() - began)
    ways: dict[str, Callable[[], object]] = {
        "memmap": lambda: memmap(flat, batch, length, steps),
        "ours": lambda: [reader.batch(step) for step in range(steps)],
        "ours, prefetched": lambda: prefetched(reader, steps),
    }
    for name in options.peers:
        ways[name] = PEERS[name](folder, batch, length, steps)
    for _ in range(options.rounds):
        for name, way in ways.items():
            figures.setdefault(f"{name}, tokens/s", []).append(rate(way, per_round))
    for name in ways.keys() - {"ours"}:
        figures[f"ours / {name}"] = over(figures["ours, tokens/s"], figures[f"{name}, tokens/s"])
    huge = Order([10**12 // length], 1024, seed=1)
    figures["order of a step at 10^12 tokens, s"] = []
    for number in range(options.rounds):
        began = time.perf_counter()
        huge.sample_ids(10**6 + number)
        figures["order of a step at 10^12 tokens, s"].append(time.perf_counter() - began)
    return figures


def prefetched(reader: TokenReader, steps: int) -> None:
    with Prefetcher(reader, stop_step=steps) as feed:
        for _ in feed:
            pass


# -- peers -----------------------------------------------------------------------------------------------------------
def from_litdata(folder: Path, batch: int, length: int, steps: int) -> Callable[[], object]:
    """The same chunks, in its own shuffled order."""
    from litdata import StreamingDataset
    from litdata.streaming.item_loader import TokensLoader

    block = TokensLoader(block_size=length + 1)
    rows = StreamingDataset(input_dir=str(folder / "train"), item_loader=block, shuffle=True, seed=1)
    return lambda: in_batches((np.asarray(row) for row in rows), batch, steps)


def in_batches(rows: Iterator[np.ndarray], batch: int, steps: int) -> None:
    for _ in range(steps):
        whole = torch.from_numpy(np.stack(list(islice(rows, batch))).astype(np.int64))
        _ = whole[:, :-1], whole[:, 1:]


PEERS = {"litdata": from_litdata}


if __name__ == "__main__":
    main()
