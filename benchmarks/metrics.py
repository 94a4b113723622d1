"""What metrics cost a step: the calls of one step by themselves, and training with them and without, in turn.

    python benchmarks/metrics.py [--pairs 60] [--steps 4] [--scrape 5]

`calls` is all that a step of rank 0 does for metrics on top of its row: clocks, signs of life, series, the account,
spikes, shares of compute time. The pairs train pythia-14m on one CPU thread, a window of steps with all of it beside
one without, in turning order, while a thread scrapes the endpoint every few seconds as a Prometheus would.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import torch
from results import Figures, tell

from launchyard.model.cost import flops_per_token
from launchyard.model.zoo import preset
from launchyard.run.rundir import RunDir
from launchyard.training.build import build_model
from launchyard.training.data.micro_batch import MicroBatch
from launchyard.training.distributed import World
from launchyard.training.optim.optimizers import make_optimizer
from launchyard.training.recipe import Recipe
from launchyard.training.sections.data import DataConfig
from launchyard.training.sections.train import TrainConfig
from launchyard.training.step import StepTimes, train_step
from launchyard.training.telemetry.events import Events
from launchyard.training.telemetry.exporter import Exporter
from launchyard.training.telemetry.heartbeat import Limits, PulseWriter
from launchyard.training.telemetry.instruments import Instruments
from launchyard.training.telemetry.peak_flops import Flops
from launchyard.training.telemetry.phases import PhaseClock
from launchyard.training.telemetry.recorder import Account, Recorder

SEQ_LEN, SEQUENCES = 256, 1


class Side:
    """A clock and a recorder, with all that metrics do or with nothing but phases."""

    def __init__(self, folder: Path, *, full: bool) -> None:
        world = World(0, 0, 1, 0, 0, str(folder), None, "here")
        limits = Limits(step_seconds=None, slow_seconds=1800)
        self.pulse = PulseWriter(str(folder), 0, limits) if full else None
        self.clock = PhaseClock(observer=self.pulse)
        self.exporter = Exporter(rank=0, host="127.0.0.1" if full else None)
        self.recorder = Recorder(
            world,
            Instruments(self.clock, self.exporter, Events(RunDir(str(folder)), world, log=sys.stdout)),
            device=torch.device("cpu"),
            flops=Flops(flops_per_token(preset("pythia-14m"), SEQ_LEN), 0.0, 1e12 if full else None),
            account=Account(RunDir(str(folder)), 0, lambda before: None) if full else None,
        )
        self._number = 0

    def around(self, seconds: float) -> None:
        """What the loop does for metrics in a step, but for the phases inside train_step."""
        self._number += 1
        self.clock.enter("data_wait")
        self.recorder.compute_votes(self._number)
        self.clock.enter("collective_wait")
        self.clock.enter("other")
        self.recorder.ranks_computed(self._number, [])
        row = {
            "step": self._number,
            "loss": 3.0,
            "grad_norm": 1.0,
            "lr": 1e-3,
            "tokens_seen": 1,
            "labels": SEQ_LEN * SEQUENCES,
            "step_seconds": seconds,
        }
        self.recorder.step(row, SEQ_LEN * SEQUENCES)


def calls(side: Side, times: int = 20_000) -> float:
    """Microseconds of CPU of one step's calls, those inside train_step included."""
    began = time.thread_time()
    for _ in range(times):
        side.around(0.1)
        side.clock.enter("forward_backward")
        side.clock.enter("optimizer")
        with side.clock.waits():
            pass
    return (time.thread_time() - began) / times * 1e6


class Training:
    def __init__(self) -> None:
        recipe = Recipe(
            name="bench", model={"preset": "pythia-14m"}, data=DataConfig(source="x"), train=TrainConfig(max_steps=1)
        )
        self._model = build_model(preset("pythia-14m"), recipe, world_size=1, device=torch.device("cpu"))
        self._optimizer = make_optimizer(self._model, recipe.optimizer)
        self._tokens = torch.randint(0, 50_000, (2, SEQUENCES, SEQ_LEN), generator=torch.Generator().manual_seed(0))
        self._number = 0

    def window(self, side: Side, steps: int) -> tuple[float, float]:
        """(wall seconds, seconds of this thread's CPU) a step."""
        began, cpu = time.perf_counter(), time.thread_time()
        for _ in range(steps):
            self._number += 1
            train_step(
                self._model,
                self._optimizer,
                [MicroBatch(self._tokens[0], self._tokens[1])],
                n_parts=SEQ_LEN * SEQUENCES,
                number=self._number,
                lr=1e-5,
                max_grad_norm=1.0,
                times=StepTimes(side.clock),
            )
            side.around(0.1)
        return (time.perf_counter() - began) / steps, (time.thread_time() - cpu) / steps


def scrape_for_ever(url: str, every: float, stop: threading.Event) -> None:
    while not stop.wait(every):
        with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            answer.read()


def spread(values: list[float]) -> str:
    low, middle, high = (statistics.quantiles(values, n=4)[at] for at in (0, 1, 2))
    error = 1.2533 * statistics.stdev(values) / len(values) ** 0.5
    return f"{middle * 100:+.3f} % (quartiles {low * 100:+.3f} to {high * 100:+.3f}, standard error {error * 100:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--scrape", type=float, default=5.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        full, bare = (Side(Path(tempfile.mkdtemp(dir=folder)), full=full) for full in (True, False))
        calls_of: Figures = {}
        for name, side in (("with", full), ("without", bare)):
            calls_of[name] = rounds = [calls(side) for _ in range(5)]
            print(
                f"calls of a step, {name}: {statistics.median(rounds):.1f} µs ({min(rounds):.1f} to {max(rounds):.1f})"
            )
        training, stop = Training(), threading.Event()
        threading.Thread(target=scrape_for_ever, args=(full.exporter.url, options.scrape, stop), daemon=True).start()
        training.window(bare, 3)
        walls, cpus, seconds = [], [], []
        for number in range(options.pairs):
            order = [full, bare] if number % 2 else [bare, full]
            found = {id(side): training.window(side, options.steps) for side in order}
            (wall, cpu), (bare_wall, bare_cpu) = found[id(full)], found[id(bare)]
            walls.append(wall / bare_wall - 1)
            cpus.append(cpu / bare_cpu - 1)
            seconds.append(bare_wall)
        stop.set()
        print(f"a step takes {statistics.median(seconds) * 1e3:.1f} ms; {options.pairs} pairs of {options.steps} steps")
        print(f"with metrics, wall time: {spread(walls)}")
        print(f"with metrics, CPU time of the training thread: {spread(cpus)}")
        full.exporter.close()
        share = [one * 1e-6 / statistics.median(seconds) for one in calls_of["with"]]
        tell({"calls of a step, µs": calls_of["with"], "calls / a step": share, "wall time, more": walls})


if __name__ == "__main__":
    main()
