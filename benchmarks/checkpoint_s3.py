"""Save and load of pythia-160m with AdamW state (1.95 GB) in S3, beside raw put and get of the same client, in one run.

    python benchmarks/checkpoint_s3.py [--rounds 3] [--dir FOLDER] [--preset pythia-160m] [--peers PYTHON]

A real S3 server (`weed`, see launcher/sandbox) runs on this machine for as long as it takes, on the same cores. Raw put
and get move the same bytes in parts of the same size, as many at once, over the same client, and hash nothing. Ours
hashes what it saves and verifies what it loads. dcp goes through its own writer for fsspec; with --peers, a Python that
has s3torchconnector, through that one's too. The order of the rows turns from round to round; medians and ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from checkpoint import state, timed
from streamed import BUCKET, server

from launchyard.run.rundir import RunDir
from launchyard.storage.stores.registry import store_for
from launchyard.storage.stores.s3 import UPLOAD_PART_BYTES
from launchyard.storage.stores.s3_parts import PARTS_AT_ONCE
from launchyard.training.checkpoint.checkpointer import Checkpointer
from launchyard.training.checkpoint.commit import Identity
from launchyard.training.checkpoint.parts import PIECE_BYTES, READERS, as_bytes
from launchyard.training.checkpoint.state import Shard
from launchyard.training.distributed import read_world

Ways = dict[str, Callable[[], Any]]


class Raw:
    """The client that the code under test uses, and nothing between it and the bytes."""

    def __init__(self, memory: memoryview) -> None:
        self._fs, self._memory = store_for(f"s3://{BUCKET}")._fs, memory  # type: ignore[attr-defined]

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._fs.loop).result()

    async def _few(self, count: int, at_once: int, one: Callable[[int], Coroutine[Any, Any, Any]]) -> list[Any]:
        room = asyncio.Semaphore(at_once)

        async def in_turn(index: int) -> Any:
            async with room:
                return await one(index)

        return await asyncio.gather(*(in_turn(index) for index in range(count)))

    def put(self) -> None:
        self._run(self._put({"Bucket": BUCKET, "Key": "raw"}))

    async def _put(self, place: dict[str, str]) -> None:
        place["UploadId"] = (await self._fs._call_s3("create_multipart_upload", **place))["UploadId"]

        async def part(index: int) -> dict[str, Any]:
            body = bytes(self._memory[index * UPLOAD_PART_BYTES : (index + 1) * UPLOAD_PART_BYTES])
            answer = await self._fs._call_s3("upload_part", **place, PartNumber=index + 1, Body=body)
            return {"PartNumber": index + 1, "ETag": answer["ETag"]}

        parts = await self._few(-(-len(self._memory) // UPLOAD_PART_BYTES), PARTS_AT_ONCE, part)
        await self._fs._call_s3("complete_multipart_upload", **place, MultipartUpload={"Parts": parts})

    def get(self) -> None:
        self._run(self._get())

    async def _get(self) -> None:
        async def span(index: int) -> None:
            target = self._memory[index * PIECE_BYTES : (index + 1) * PIECE_BYTES]
            begin = index * PIECE_BYTES
            where = f"bytes={begin}-{begin + len(target) - 1}"
            answer = await self._fs._call_s3("get_object", Bucket=BUCKET, Key="raw", Range=where)
            target[:] = await answer["Body"].read()

        await self._few(-(-len(self._memory) // PIECE_BYTES), READERS, span)


class Peak:
    """Resident memory above what there was at the beginning, in bytes, sampled."""

    def __enter__(self) -> Peak:
        self._before, self.bytes, self._over = self._now(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self.bytes = max(self.bytes, self._now() - self._before)

    @staticmethod
    def _now() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def checkpointer(folder: str) -> Checkpointer:
    heard: list[str] = []

    def hear(name: str, **facts: Any) -> None:
        heard.append(name)
        if name != "saved":
            print(name, facts, file=sys.stderr)

    return Checkpointer(
        RunDir(folder), read_world(), Identity({}, "d", "r", {}), keep=1, background=True, on_event=hear
    )


def ours(whole: dict[str, Shard], stall: list[float]) -> Ways:
    writer, step = checkpointer(f"s3://{BUCKET}/run"), iter(range(1, 1000))

    def save() -> None:
        number = next(step)
        stall.append(writer.save(number, whole, {"step": number}, "permanent"))
        writer.wait(must_succeed=True)

    return {"ours, save (hashed)": save, "ours, load (verified)": lambda: writer.load_newest(whole)}


def through_fsspec(tensors: dict[str, Any]) -> Ways:
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter

    place = f"s3://{BUCKET}/dcp"
    return {
        "dcp.save, fsspec": lambda: dcp.save(dict(tensors), storage_writer=FsspecWriter(place, sync_files=False)),
        "dcp.load, fsspec": lambda: dcp.load(dict(tensors), storage_reader=FsspecReader(place)),
    }


def through_connector(tensors: dict[str, Any]) -> Ways:
    from s3torchconnector import S3ClientConfig
    from s3torchconnector.dcp import S3StorageReader, S3StorageWriter

    place, region = f"s3://{BUCKET}/connector", os.environ["AWS_REGION"]
    config = S3ClientConfig(force_path_style=True)
    return {
        "dcp.save, s3torchconnector": lambda: dcp.save(
            dict(tensors), storage_writer=S3StorageWriter(region, place, s3client_config=config)
        ),
        "dcp.load, s3torchconnector": lambda: dcp.load(
            dict(tensors), storage_reader=S3StorageReader(region, place, s3client_config=config)
        ),
    }


def peers(python: str, preset: str) -> dict[str, float]:
    argv = [python, "-W", "ignore", __file__, "--as-peer", "--preset", preset]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=1800, env=env)
    if done.returncode:
        sys.exit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def joined(tensors: Iterable[torch.Tensor], size: int) -> memoryview:
    whole, at = memoryview(bytearray(size)), 0
    for tensor in tensors:
        part = as_bytes(tensor)
        whole[at : at + len(part)] = part
        at += len(part)
    return whole


def memory_of(whole: dict[str, Shard], size: int) -> None:
    """A first save and a first load, of a process that has the state and nothing else yet."""
    ways = ours(whole, [])
    for name, way in ways.items():
        with Peak() as peak:
            way()
        print(f"{name:28} memory above the state {peak.bytes / 1e9:.2f} GB, {peak.bytes / size:.2f} of its size")


def report(times: dict[str, list[float]], stall: list[float], size: int) -> None:
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    for name, seconds in times.items():
        spread = f"({min(seconds):.2f} to {max(seconds):.2f})"
        print(f"{name:28} {median[name]:6.2f} s  {spread}  {size / median[name] / 1e6:5.0f} MB/s")
    print(f"{'stall of an async save':28} {statistics.median(stall):6.2f} s  ({min(stall):.2f} to {max(stall):.2f})")
    for name, raw in {"ours, save (hashed)": "raw put", "ours, load (verified)": "raw get"}.items():
        ratios = [theirs / mine for mine, theirs in zip(times[name], times[raw], strict=True)]
        spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"speed of {name} / {raw}: {statistics.median(ratios):.2f} {spread}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", help="where the server keeps its data")
    parser.add_argument("--preset", default="pythia-160m")
    parser.add_argument("--peers", metavar="PYTHON", help="with s3torchconnector")
    parser.add_argument("--as-peer", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    whole = state(given.preset)
    tensors = {key: shard.tensor for key, shard in whole.items()}
    if given.as_peer:
        print(json.dumps({name: timed(way) for name, way in through_connector(tensors).items()}))
        return
    size = sum(len(as_bytes(tensor)) for tensor in tensors.values())
    times, stall = dict[str, list[float]](), list[float]()
    with tempfile.TemporaryDirectory(dir=given.dir) as folder, server(Path(folder, "s3")):
        memory_of(whole, size)
        raw = Raw(joined(tensors.values(), size))
        pairs = [{"raw put": raw.put, "raw get": raw.get}, ours(whole, stall), through_fsspec(tensors)]
        for number in range(given.rounds):
            for way in (name_and_way for pair in pairs for name_and_way in pair.items()):
                times.setdefault(way[0], []).append(timed(way[1]))
            pairs = pairs[1:] + pairs[:1]
            for name, seconds in (peers(given.peers, given.preset) if given.peers else {}).items():
                times.setdefault(name, []).append(seconds)
            print(f"round {number + 1}, load {os.getloadavg()[0]:.1f}", {k: round(v[-1], 2) for k, v in times.items()})
    print(f"state {size / 1e9:.2f} GB, torch {torch.__version__}, {os.cpu_count()} cores, {time.strftime('%F')}")
    report(times, stall, size)


if __name__ == "__main__":
    main()
