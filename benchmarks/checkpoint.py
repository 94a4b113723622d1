"""Save and load of pythia-160m with AdamW state (1.9 GB), beside a raw write and torch's own dcp, in one run.

    python benchmarks/checkpoint.py [--rounds 3] [--dir FOLDER]

Prints medians and ratios. Every save ends on the disk (fsync) in files of its own, and removing the ones before is not
counted; ours hashes all it writes, dcp does not.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable

import torch
import torch.distributed.checkpoint as dcp
from results import over, tell

from launchyard.model.zoo import preset
from launchyard.run.rundir import RunDir
from launchyard.training.build import build_model
from launchyard.training.checkpoint.checkpointer import Checkpointer
from launchyard.training.checkpoint.commit import Identity
from launchyard.training.checkpoint.state import Shard, shards
from launchyard.training.distributed import read_world
from launchyard.training.optim.optimizers import make_optimizer
from launchyard.training.recipe import Recipe
from launchyard.training.sections.data import DataConfig
from launchyard.training.sections.train import TrainConfig

warnings.filterwarnings("ignore")


def timed(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def state(name: str = "pythia-160m") -> dict[str, Shard]:
    config = preset(name)
    recipe = Recipe(name="bench", model={"preset": name}, data=DataConfig(source="x"), train=TrainConfig(max_steps=1))
    model = build_model(config, recipe, world_size=1, device=torch.device("cpu"))
    optimizer = make_optimizer(model, recipe.optimizer)
    for moments in map(optimizer.state, model.parameters()):
        for moment in moments.values():
            moment.tensor.normal_()
    return shards(model, optimizer)


def raw_write(tensors: dict[str, torch.Tensor], path: str) -> None:
    with open(path, "wb", buffering=0) as file:
        for tensor in tensors.values():
            file.write(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
        os.fsync(file.fileno())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", default=None)
    given = parser.parse_args()
    folder = tempfile.mkdtemp(dir=given.dir, prefix="bench-checkpoint-")
    whole = state()
    tensors = {key: shard.tensor for key, shard in whole.items()}
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    run = RunDir(folder)
    committed = threading.Event()  # before what is superfluous now is removed

    def on_event(name: str, **_: object) -> None:
        if name == "saved":
            committed.set()

    writer = Checkpointer(run, read_world(), Identity({}, "d", "r", {}), keep=1, background=True, on_event=on_event)
    times: dict[str, list[float]] = {}
    stall: list[float] = []

    def once(number: int) -> dict[str, float]:
        def ours() -> None:
            committed.clear()
            stall.append(writer.save(number, whole, {"step": number}, "permanent"))
            if not committed.wait(300):
                writer.wait(must_succeed=True)

        result = {"raw write + fsync": timed(lambda: raw_write(tensors, f"{folder}/raw"))}
        os.unlink(f"{folder}/raw")
        result["ours, save (hashed)"] = timed(ours)
        writer.wait(must_succeed=True)
        result["dcp.save"] = timed(lambda: dcp.save(dict(tensors), checkpoint_id=f"{folder}/dcp{number}"))
        result["ours, load (verified)"] = timed(lambda: writer.load_newest(whole))
        result["dcp.load"] = timed(lambda: dcp.load(dict(tensors), checkpoint_id=f"{folder}/dcp{number}"))
        shutil.rmtree(f"{folder}/dcp{number}")
        return result

    try:
        once(1)  # buffers, imports, page cache
        stall.clear()
        for number in range(2, 2 + given.rounds):
            for name, seconds in once(number).items():
                times.setdefault(name, []).append(seconds)
    finally:
        shutil.rmtree(folder)
    print(f"state {size / 1e9:.2f} GB, torch {torch.__version__}, {os.cpu_count()} cores, {given.rounds} rounds")
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        print(f"{name:24} {middle:6.2f} s  ({min(seconds):.2f} to {max(seconds):.2f})  {size / middle / 1e6:6.0f} MB/s")
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    print(f"{'stall of an async save':24} {statistics.median(stall):6.2f} s  ({min(stall):.2f} to {max(stall):.2f})")
    print(f"save / raw write  {median['ours, save (hashed)'] / median['raw write + fsync']:.2f}")
    print(f"load / dcp.load   {median['ours, load (verified)'] / median['dcp.load']:.2f}")
    saves = over(times["ours, save (hashed)"], times["raw write + fsync"])
    loads = over(times["ours, load (verified)"], times["dcp.load"])
    tell({**times, "stall": stall, "save / raw write": saves, "load / dcp.load": loads})


if __name__ == "__main__":
    main()
