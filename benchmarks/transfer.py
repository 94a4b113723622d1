"""CPU time of the S3 client, a gigabyte: uploads and reads over http and https, beside those of plain aiobotocore.

    python benchmarks/transfer.py [--rounds 6] [--gigabytes 0.25]

The server (sink.py) is another process, forgets what comes and gives zeros: only the client's time counts here. All
checksums are as they are by default: over http a body is signed by its SHA-256, over https it has a CRC-32. Plain
aiobotocore sends the same parts, as many at once, as `bytes`, and reads whole bodies. Each side is a process that has
its client before the first round; rounds take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from results import over, tell

from launchyard.host.ports import free_port
from launchyard.storage import files
from launchyard.storage.options import StoreOptions
from launchyard.storage.stores.s3 import UPLOAD_PART_BYTES
from launchyard.storage.stores.s3_parts import PARTS_AT_ONCE

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.support.certificates import make_certificate

PIECE = 32 << 20  # of a checkpoint
KEYS = {"AWS_ACCESS_KEY_ID": "AKIABENCHMARK", "AWS_SECRET_ACCESS_KEY": "none", "AWS_REGION": "us-east-1"}


@contextlib.contextmanager
def server(*arguments: str) -> Iterator[int]:
    port = free_port()
    process = subprocess.Popen([sys.executable, str(Path(__file__).with_name("sink.py")), str(port), *arguments])
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


class Ours:
    def __init__(self, endpoint: str) -> None:
        files.set_store_options(StoreOptions(endpoint_url=endpoint))

    def put(self, memory: memoryview) -> None:
        writer = files.open_write("s3://bucket/key", size=len(memory))
        for at in range(0, len(memory), PIECE):
            writer.write(memory[at : at + PIECE])
        writer.close()

    def get(self, memory: memoryview) -> None:
        for at in range(0, len(memory), PIECE):
            target = memory[at : at + PIECE]
            if files.read_into("s3://bucket/key", at, target) != len(target):
                raise ValueError("short")

    def close(self) -> None: ...


class Plain:
    """aiobotocore as its documentation has it."""

    def __init__(self, endpoint: str) -> None:
        from aiobotocore.session import get_session

        self._loop = asyncio.new_event_loop()
        opened = get_session().create_client("s3", endpoint_url=endpoint)
        self._client = self._loop.run_until_complete(opened.__aenter__())

    def put(self, memory: memoryview) -> None:
        self._loop.run_until_complete(self._put(memory))

    def get(self, memory: memoryview) -> None:
        self._loop.run_until_complete(self._get(memory))

    async def _put(self, memory: memoryview) -> None:
        room, place = asyncio.Semaphore(PARTS_AT_ONCE), {"Bucket": "bucket", "Key": "key"}
        place["UploadId"] = (await self._client.create_multipart_upload(**place))["UploadId"]

        async def part(index: int) -> dict[str, Any]:
            async with room:
                body = bytes(memory[index * UPLOAD_PART_BYTES : (index + 1) * UPLOAD_PART_BYTES])
                answer = await self._client.upload_part(**place, PartNumber=index + 1, Body=body)
            return {"PartNumber": index + 1, "ETag": answer["ETag"]}

        parts = await asyncio.gather(*map(part, range(-(-len(memory) // UPLOAD_PART_BYTES))))
        await self._client.complete_multipart_upload(**place, MultipartUpload={"Parts": parts})

    async def _get(self, memory: memoryview) -> None:
        for at in range(0, len(memory), PIECE):
            target = memory[at : at + PIECE]
            span = f"bytes={at}-{at + len(target) - 1}"
            answer = await self._client.get_object(Bucket="bucket", Key="key", Range=span)
            target[:] = await answer["Body"].read()

    def close(self) -> None:
        self._loop.run_until_complete(self._client.__aexit__(None, None, None))


SIDES: dict[str, type[Ours] | type[Plain]] = {"ours": Ours, "aiobotocore": Plain}


def serve(name: str, endpoint: str, n_bytes: int) -> None:
    """Moves so many bytes up and down for each line that comes; tells the CPU seconds of all threads, a gigabyte."""
    side, memory = SIDES[name](endpoint), memoryview(bytearray(os.urandom(n_bytes)))
    for _ in sys.stdin:
        seconds = {}
        for what in ("put", "get"):
            before = time.process_time()
            getattr(side, what)(memory)
            seconds[what] = (time.process_time() - before) / n_bytes * 1e9
        print(json.dumps(seconds), flush=True)
    side.close()


@contextlib.contextmanager
def child(*arguments: str) -> Iterator[Callable[[], dict[str, float]]]:
    """One side in a process of its own; gives what makes a round."""
    argv = [sys.executable, __file__, "--serve", *arguments]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        asked, told = process.stdin, process.stdout
        assert asked is not None and told is not None

        def one_round() -> dict[str, float]:
            asked.write("\n")
            asked.flush()
            return dict(json.loads(told.readline()))

        yield one_round
        asked.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--gigabytes", type=float, default=0.25)
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve[0], options.serve[1], int(options.serve[2]))
        return
    figures: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        file = make_certificate(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        os.environ |= {**KEYS, "AWS_CA_BUNDLE": str(file), "AWS_EC2_METADATA_DISABLED": "true"}
        ends = {
            "http": f"http://127.0.0.1:{stack.enter_context(server())}",
            "https": f"https://127.0.0.1:{stack.enter_context(server('--certificate', str(file)))}",
        }
        size = str(int(options.gigabytes * 1e9))
        sides = {(name, word): stack.enter_context(child(name, ends[word], size)) for word in ends for name in SIDES}
        for number in range(options.rounds + 1):
            for (name, word), one_round in sides.items():
                for what, seconds in one_round().items():
                    if number:  # the first one imports and connects
                        figures.setdefault(f"{what}, {name}, {word}", []).append(seconds)
    for what in ("put", "get"):
        for word in ends:
            ratios = over(figures[f"{what}, ours, {word}"], figures[f"{what}, aiobotocore, {word}"])
            figures[f"{what}, ours / aiobotocore, {word}"] = ratios
    for name, values in sorted(figures.items()):
        print(f"{name:36} {statistics.median(values):6.2f}  ({min(values):.2f} to {max(values):.2f})")
    tell(figures)


if __name__ == "__main__":
    main()
