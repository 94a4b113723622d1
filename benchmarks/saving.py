"""What saves cost the training beside them: pythia-160m with AdamW on one CPU thread, a save a minute against none.

    python benchmarks/saving.py [--pairs 4] [--window 60] [--local FOLDER] [--here]

Steps run on end, in windows; every second window begins with an asynchronous save of the whole state (1.95 GB) to a
real S3 server on this machine, or with --local to a disk. A pair is two windows beside each other, in turning order.
Tokens/s, all included: staging, hashing, signing and sending in this process' threads. A server that stores the
parts takes five times the CPU that sending them does, and belongs on another machine, so here they are forgotten on
arrival (benchmarks/sink.py); with --here a real server stores them on the same cores.
Where others use the machine too, windows differ by themselves. What a save costs is then told by two of the kernel's
accounts: the seconds for which the training thread had no core, and its CPU seconds a step.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from checkpoint_s3 import checkpointer
from streamed import BUCKET, server

from launchyard.host.ports import free_port
from launchyard.model.zoo import preset
from launchyard.training.build import build_model
from launchyard.training.checkpoint.state import shards
from launchyard.training.data.micro_batch import MicroBatch
from launchyard.training.optim.optimizers import make_optimizer
from launchyard.training.recipe import Recipe
from launchyard.training.sections.data import DataConfig
from launchyard.training.sections.train import TrainConfig
from launchyard.training.step import train_step

SEQ_LEN = 64


@dataclass
class Window:
    """Seconds of each step while a save was under way, and while not; all in which training stood; CPU seconds."""

    during: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    stall: float = 0.0
    waited: float = 0.0  # of the training thread for a core, in the kernel's account
    own_cpu: float = 0.0
    other_cpu: float = 0.0  # of this process' other threads

    @property
    def steps_per_second(self) -> float:
        steps = self.during + self.alone
        return len(steps) / (sum(steps) + self.stall)

    @property
    def cpu_a_step(self) -> float:
        return self.own_cpu / len(self.during + self.alone)


class Training:
    def __init__(self, folder: str) -> None:
        self._folder = folder
        recipe = Recipe(
            name="bench", model={"preset": "pythia-160m"}, data=DataConfig(source="x"), train=TrainConfig(max_steps=1)
        )
        self._model = build_model(preset("pythia-160m"), recipe, world_size=1, device=torch.device("cpu"))
        self._optimizer = make_optimizer(self._model, recipe.optimizer)
        self._whole = shards(self._model, self._optimizer)
        self._writer = checkpointer(folder)
        self._tokens = torch.randint(0, 50_000, (2, 1, SEQ_LEN), generator=torch.Generator().manual_seed(0))
        self._number = 0
        self._writer.allocate_staging(self._whole)

    def step(self) -> float:
        began = time.perf_counter()
        self._number += 1
        batch = MicroBatch(self._tokens[0], self._tokens[1])
        train_step(
            self._model, self._optimizer, [batch], n_parts=SEQ_LEN, number=self._number, lr=1e-5, max_grad_norm=1.0
        )
        return time.perf_counter() - began

    def window(self, seconds: float, *, save: bool) -> Window:
        found, began = Window(), time.perf_counter()
        cpu, own, waited = time.process_time(), time.thread_time(), waited_for_core()
        if save:
            found.stall = self._writer.save(self._number, self._whole, {"step": self._number}, "permanent")
        while time.perf_counter() - began < seconds:
            busy = self._writer.busy
            (found.during if busy else found.alone).append(self.step())
        found.own_cpu, found.waited = time.thread_time() - own, waited_for_core() - waited
        found.other_cpu = time.process_time() - cpu - found.own_cpu
        if self._writer.busy:
            print("a save took longer than its window")
        self._writer.wait(must_succeed=True)
        return found


def waited_for_core() -> float:
    """Seconds that this thread could have computed and had no core, since it began."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


@contextlib.contextmanager
def place(local: str | None, *, here: bool) -> Iterator[str]:
    with tempfile.TemporaryDirectory(dir=local) as folder:
        if local:
            yield folder
            return
        with server(Path(folder, "s3")), contextlib.ExitStack() as stack:
            if not here:
                stack.enter_context(forgotten())
            yield f"s3://{BUCKET}/run"


@contextlib.contextmanager
def forgotten() -> Iterator[None]:
    """Parts of uploads go to benchmarks/sink.py."""
    real, port = os.environ["AWS_ENDPOINT_URL"], free_port()
    argv = [sys.executable, str(Path(__file__).with_name("sink.py")), str(port), real.rpartition(":")[2]]
    process = subprocess.Popen(argv)
    try:
        while True:
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
        yield
    finally:
        os.environ["AWS_ENDPOINT_URL"] = real
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--window", type=float, default=60.0, help="seconds")
    parser.add_argument("--local", metavar="FOLDER")
    parser.add_argument("--here", action="store_true", help="the server stores all on these cores")
    given = parser.parse_args()
    torch.set_num_threads(1)
    pairs: list[tuple[Window, Window]] = []
    with place(given.local, here=given.here) as folder:
        training = Training(folder)
        training.window(5, save=True)  # imports, staging memory, connections
        for number in range(given.pairs):
            windows = {save: training.window(given.window, save=save) for save in (number % 2 == 0, number % 2 == 1)}
            pairs.append((windows[True], windows[False]))
    report(pairs, given.window)


def report(pairs: list[tuple[Window, Window]], window: float) -> None:
    def say(what: str, values: list[float]) -> None:
        print(f"{what:64} {statistics.median(values):6.3f}  ({min(values):.3f} to {max(values):.3f})")

    with_save, without = [one for one, _ in pairs], [other for _, other in pairs]
    say("steps a second, no save", [window.steps_per_second for window in without])
    say("throughput, a save a window against none", [a.steps_per_second / b.steps_per_second for a, b in pairs])
    say("stall of a save, seconds", [window.stall for window in with_save])
    say("seconds that a save was under way", [sum(window.during) for window in with_save])
    steps = [statistics.mean(a.during) / statistics.mean(b.alone) for a, b in pairs if a.during and b.alone]
    say("a step's seconds during a save against none", steps)
    say("the training thread's CPU seconds a step, likewise", [a.cpu_a_step / b.cpu_a_step for a, b in pairs])
    lost = [a.stall + a.waited - b.waited for a, b in pairs]
    say("seconds a save that training stood or waited for a core", lost)
    say("a step's CPU seconds in the training thread aside, throughput", [1 - one / window for one in lost])
    others = [a.other_cpu - b.other_cpu for a, b in pairs]
    say("CPU seconds of a save in other threads of the process", others)


if __name__ == "__main__":
    main()
