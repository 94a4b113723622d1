"""The manifest of 70B parameters with two moments each, saved and loaded by simulated ranks.

Real are the words of the ranks, their joining on rank 0, the manifest, its seal, and the look-up of pieces; not there
are the numbers themselves, so hashes are zeros.
"""

from __future__ import annotations

import gc
import math
import os
import pickle
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launchyard.storage import layouts, shards
from launchyard.storage.layouts import HASH_BYTES, Extent, Joined, RankParts, join, told_parts
from launchyard.storage.safetensors import DTYPE_BYTES
from launchyard.storage.shards import FileEntry, Manifest, OpenShards, TensorEntry, read_manifest, sealed
from launchyard.training.checkpoint.parts import PIECE_BYTES

RANKS = (410, 4096)
DIM, FFN, VOCAB, LAYERS, KV = 8192, 28672, 128_256, 80, 1024
MB = 1e6
MANIFEST_MB = "manifest"
FIGURES = {
    MANIFEST_MB: "MB",
    "heard by rank 0 at the first save": "MB",
    "heard by rank 0 at each further one": "MB",
    "memory of rank 0, first save": "MB",
    "joining, once an attempt": "CPU s",
    "commit without the store": "CPU s",
    "broadcast to each rank at a load": "MB",
    "memory of a rank, load": "MB",
    "finding its pieces, load": "CPU s",
    "memory of a rank, load by 3/4 as many": "MB",
    "finding its pieces, by 3/4 as many": "CPU s",
}
_BLOCK = {
    "attn.q_proj.weight": (DIM, DIM), "attn.k_proj.weight": (KV, DIM), "attn.v_proj.weight": (KV, DIM),
    "attn.o_proj.weight": (DIM, DIM), "mlp.gate_proj.weight": (FFN, DIM), "mlp.up_proj.weight": (FFN, DIM),
    "mlp.down_proj.weight": (DIM, FFN), "attn_norm.weight": (DIM,), "mlp_norm.weight": (DIM,),
}  # fmt: skip


def shapes() -> dict[str, Extent]:
    """By key, in order; 70.6e9 parameters."""
    plain = {"embed.weight": (VOCAB, DIM), "head.weight": (VOCAB, DIM), "norm.weight": (DIM,)}
    plain |= {f"blocks.{layer}.{name}": shape for layer in range(LAYERS) for name, shape in _BLOCK.items()}
    made = {f"model.{name}": shape for name, shape in plain.items()}
    for moment in ("exp_avg", "exp_avg_sq"):
        made |= {f"optimizer.{name}.{moment}": shape for name, shape in plain.items()}
    return dict(sorted(made.items()))


def part(shape: Extent, rank: int, ranks: int) -> tuple[Extent, Extent] | None:
    """As FSDP cuts: rows, in equal chunks."""
    rows = -(-shape[0] // ranks)
    first = min(rank * rows, shape[0])
    count = min(rows, shape[0] - first)
    return ((first, *(0 for _ in shape[1:])), (count, *shape[1:])) if count else None


def written(whole: dict[str, Extent], rank: int, ranks: int) -> dict[str, tuple[str, Extent, Extent, Extent]]:
    found = ((key, shape, part(shape, rank, ranks)) for key, shape in whole.items())
    return {key: ("F32", shape, *box) for key, shape, box in found if box}


def file_of(parts: dict[str, tuple[str, Extent, Extent, Extent]], header_bytes: int) -> FileEntry:
    """What the writing of them would tell."""
    body = pieces = 0
    for (*_, box), tensors in Counter(parts.values()).items():
        body += tensors * DTYPE_BYTES["F32"] * math.prod(box)
        pieces += tensors * sum(1 for _ in layouts.cut("F32", box, PIECE_BYTES))
    n_bytes = header_bytes + body + HASH_BYTES * pieces
    return FileEntry(
        bytes=n_bytes, header_bytes=header_bytes, header_xxh3="0" * 16, pieces=pieces, hashes_xxh3="0123456789abcdef"
    )


def manifest_of(entries: dict[int, FileEntry], joined: Joined, ranks: int) -> Manifest:
    return Manifest(
        step=1000, attempt=0, run_id="made", world_size=ranks, kind="permanent", created=0.0, train_state={}, model={},
        data_digest="", recipe_hash="", versions={}, piece_bytes=PIECE_BYTES,
        files={f"0000-rank-{rank:05d}.safetensors": entry for rank, entry in entries.items()},
        tensors={
            key: TensorEntry(dtype=dtype, shape=shape, layout=number)
            for key, (dtype, shape, number) in joined.tensors.items()
        },
        layouts=joined.layouts,
    )  # fmt: skip


def resident() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / MB


def peak_of(action: Any) -> tuple[Any, float, float]:
    """The value of an action, its CPU seconds, and the most memory above that of its beginning, in MB."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident()
    began = time.process_time()
    value = action()
    seconds = time.process_time() - began
    with open("/proc/self/status") as file:
        peak = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
    return value, seconds, max(0.0, peak / MB - before)


def measure(folder: str, ranks: int) -> dict[str, float]:
    """The figures at some number of ranks, each side in a process of its own, as memory that was used stays there."""
    from growth_axes import in_child

    made = in_child(_save, folder, ranks)
    same = in_child(_load, folder, ranks, ranks)
    fewer = in_child(_load, folder, ranks, ranks * 3 // 4)
    renamed = {"memory of a rank, load by 3/4 as many": fewer["memory of a rank, load"]}
    renamed["finding its pieces, by 3/4 as many"] = fewer["finding its pieces, load"]
    return {name: values[0] for name, values in (made | same | renamed).items()}


def _save(folder: str, ranks: int) -> dict[str, list[float]]:
    whole = shapes()
    held = list(whole)
    entries: dict[int, FileEntry] = {}
    words = []
    for rank in range(ranks):
        parts = written(whole, rank, ranks)
        words.append(pickle.dumps(told_parts(held, parts, reference=held)))
        entries[rank] = file_of(parts, 250_000)
    entry_bytes = sum(len(pickle.dumps(entry)) for entry in entries.values())

    def first() -> Joined:
        heard: list[RankParts] = [pickle.loads(word) for word in words]
        return join(heard, held)

    joined, joining, memory = peak_of(first)
    text, commit, sealing = peak_of(lambda: sealed(manifest_of(entries, joined, ranks)))
    os.makedirs(folder, exist_ok=True)
    Path(folder, shards.MANIFEST).write_text(text)
    return {
        MANIFEST_MB: [len(text) / MB],
        "heard by rank 0 at the first save": [(sum(map(len, words)) + entry_bytes) / MB],
        "heard by rank 0 at each further one": [entry_bytes / MB],
        "memory of rank 0, first save": [(sum(map(len, words)) + 2 * entry_bytes) / MB + memory + sealing],
        "joining, once an attempt": [joining],
        "commit without the store": [commit],
    }


def _load(folder: str, saved: int, ranks: int) -> dict[str, list[float]]:
    """By the rank in the middle of `ranks`."""
    whole = shapes()
    sent = len(pickle.dumps(read_manifest(folder)))
    shards.check_file = lambda folder, name, entry: bytes(HASH_BYTES * entry.pieces)
    mine = written(whole, ranks // 2, ranks)

    def plan() -> Any:
        manifest = read_manifest(folder)
        opened = OpenShards(folder, manifest)
        return manifest, opened, list(_needed(opened, mine))

    (_, _, needed), seconds, memory = peak_of(plan)
    assert sum(n for _, n in needed) >= sum(DTYPE_BYTES["F32"] * math.prod(box) for *_, box in mine.values())
    return {
        "broadcast to each rank at a load": [sent / MB],
        "memory of a rank, load": [memory],
        "finding its pieces, load": [seconds],
    }


def _needed(
    opened: OpenShards, mine: dict[str, tuple[str, Extent, Extent, Extent]]
) -> Iterator[tuple[shards.TensorPiece, int]]:
    for key, (_, _, offsets, sizes) in mine.items():
        for piece in opened.pieces(key, offsets, sizes):
            yield piece, piece.length
