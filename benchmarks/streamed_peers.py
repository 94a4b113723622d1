"""What benchmarks/streamed.py is compared with; run by a Python of its own that has litdata and mosaicml-streaming.

    PYTHON benchmarks/streamed_peers.py DATA s3://BUCKET FOLDER STEPS

DATA/train holds litdata's chunks, DATA/flat.bin the same tokens. Prints seconds and millions of tokens per second.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

BATCH, LENGTH = 8, 2048


def batches(rows: Any, steps: int) -> int:
    """Rows of LENGTH + 1 tokens as int64 batches, like those that a trainer gets; how many there were."""
    done = 0
    for _ in range(steps):
        batch = [row for _, row in zip(range(BATCH), rows, strict=False)]
        if len(batch) < BATCH:
            break
        whole = torch.from_numpy(np.stack(batch).astype(np.int64))
        _ = whole[:, :-1], whole[:, 1:]
        done += 1
    return done


def timed(rows: Any, steps: int, began: float, name: str) -> dict[str, float]:
    rows = iter(rows)
    batches(rows, 1)
    first = time.perf_counter() - began
    began = time.perf_counter()
    done = batches(rows, steps)
    speed = done * BATCH * LENGTH / (time.perf_counter() - began) / 1e6
    return {f"{name}_first_batch_seconds": first, f"{name}_mtokens_per_second": speed}


def litdata(data: Path, bucket: str, folder: Path, steps: int) -> dict[str, float]:
    os.environ["DATA_OPTIMIZER_CACHE_FOLDER"] = str(folder / "litdata")
    from litdata import StreamingDataset
    from litdata.streaming import downloader
    from litdata.streaming.item_loader import TokensLoader

    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # else it refuses this server
    found: dict[str, float] = {}
    for name, place in (("litdata_local", str(data / "train")), ("litdata_s3", f"{bucket}/data/train")):
        for times in ("cold", "cached") if name == "litdata_s3" else ("",):
            began = time.perf_counter()
            rows = StreamingDataset(
                input_dir=place,
                cache_dir=str(folder / "litdata-cache"),
                item_loader=TokensLoader(block_size=LENGTH + 1),
                shuffle=True,
                seed=1,
            )
            plain = (np.asarray(row) for row in rows)
            found |= timed(plain, steps, began, "_".join(filter(None, (name, times))))
    return found


def mosaic(data: Path, bucket: str, folder: Path, steps: int) -> dict[str, float]:
    from streaming import MDSWriter, StreamingDataset

    flat = np.memmap(data / "flat.bin", dtype=np.uint16, mode="r")
    remote, n = str(data / "mds"), LENGTH + 1
    if not Path(remote).exists():
        with MDSWriter(out=remote, columns={"tokens": f"ndarray:uint16:{n}"}, size_limit=1 << 26) as out:
            for at in range(0, len(flat) - n, n):
                out.write({"tokens": flat[at : at + n]})
        upload(Path(remote), bucket)
    found: dict[str, float] = {}
    for times in ("cold", "cached"):
        began = time.perf_counter()
        rows = StreamingDataset(
            remote=f"{bucket}/mds", local=str(folder / "mds"), shuffle=True, batch_size=BATCH, num_canonical_nodes=1
        )
        plain = (row["tokens"] for row in rows)
        found |= timed(plain, min(steps, 600), began, f"mosaic_s3_{times}")
        del rows, plain
    return found


def upload(folder: Path, bucket: str) -> None:
    import boto3

    client = boto3.client("s3")
    for path in folder.iterdir():
        client.upload_file(str(path), bucket.removeprefix("s3://"), f"mds/{path.name}")


def main() -> None:
    data, bucket, folder, steps = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    folder.mkdir(parents=True)
    print(json.dumps(litdata(data, bucket, folder, steps) | mosaic(data, bucket, folder, steps)))


if __name__ == "__main__":
    main()
