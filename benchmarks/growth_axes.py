"""What benchmarks/growth.py measures: one function an axis, each yielding the series of a growing thing.

Each point is measured in a forked process of its own, which has torch already and one thread; CPU seconds and bytes are
its own, so other load on the machine shifts them little.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import xxhash

from launchyard.launcher.report.history import read_story
from launchyard.launcher.report.html import report_page
from launchyard.launcher.report.metric_tables import step_table
from launchyard.launcher.runs.state import state_of
from launchyard.model.config import ModelConfig
from launchyard.model.cost import flops_per_token, n_params
from launchyard.model.memory import Savings, training_memory
from launchyard.model.zoo import preset
from launchyard.run.append import Appender
from launchyard.run.events import SAVED
from launchyard.run.records import OutcomeRecord, Target
from launchyard.run.rundir import RunDir
from launchyard.training.build import build_model
from launchyard.training.data.micro_batch import MicroBatch
from launchyard.training.data.reader import TokenReader
from launchyard.training.data.token_store import TokenStore
from launchyard.training.distributed import World, sum_over_ranks
from launchyard.training.loop import numbers
from launchyard.training.optim.optimizers import make_optimizer
from launchyard.training.recipe import Recipe
from launchyard.training.sections.data import DataConfig
from launchyard.training.sections.train import TrainConfig
from launchyard.training.step import train_step
from launchyard.training.telemetry.events import Events
from launchyard.training.telemetry.exporter import Exporter
from launchyard.training.telemetry.instruments import Instruments
from launchyard.training.telemetry.peak_flops import Flops
from launchyard.training.telemetry.phases import PhaseClock
from launchyard.training.telemetry.recorder import Account, Recorder
from launchyard.training.worker import main as worker_main
from tests.support.ranks import free_port
from tests.support.small_runs import claim, make_run, write_chunks, write_data

Values = list[float]  # of one thing, measured some times


@dataclass(frozen=True)
class Series:
    """`expected`: what is expected at each x, up to a factor."""

    name: str
    unit: str
    xs: Sequence[float]
    values: Sequence[Values]
    expected: Sequence[float]
    note: str = ""


# -- processes ---
def in_child(function: Callable[..., dict[str, Values]], *args: Any) -> dict[str, Values]:
    """What a function finds in a forked process."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(read)
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            found = function(*args)
            with os.fdopen(write, "w") as out:
                json.dump(found, out)
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as answer:
        text = answer.read()
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError(f"{function.__name__}{args} failed; see above")
    return dict(json.loads(text))


def cpu_seconds(function: Callable[[], object], times: int = 1) -> Values:
    found = []
    for _ in range(times):
        began = time.process_time()
        function()
        found.append(time.process_time() - began)
    return found


class PeakBytes:
    """The most resident memory above that of the beginning."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _status("VmRSS")

    def __call__(self) -> float:
        return float(_status("VmHWM") - self._before)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def along(
    xs: Sequence[float], measure: Callable[..., dict[str, Values]], *args: Any
) -> Iterator[tuple[str, list[Values]]]:
    """Each series by its name: the values at each x."""
    found = [in_child(measure, x, *args) for x in xs]
    for name in found[0]:
        yield name, [one[name] for one in found]


# -- model and sequence ---
WIDTHS = (128, 192, 256, 384)  # parameters of the blocks × 9
LENGTHS = (256, 512, 1024, 2048)
VOCAB = 2048


def shape(width: int) -> ModelConfig:
    knobs = {"dim": width, "n_heads": width // 32, "n_kv_heads": width // 32, "ffn_dim": 4 * width, "n_layers": 4}
    return ModelConfig.model_validate(
        {**preset("pythia-14m").model_dump(), **knobs, "vocab_size": VOCAB, "padded_vocab_size": VOCAB}
    )


def step_cost(width: int, seq_len: int, times: int = 5) -> dict[str, Values]:
    """CPU seconds of a step of one sequence, and the memory of training."""
    config, memory = shape(width), PeakBytes()
    recipe = Recipe(
        name="growth", model=config.model_dump(exclude_none=True), data=DataConfig(source="x"),
        train=TrainConfig(max_steps=1),
    )  # fmt: skip
    model = build_model(config, recipe, world_size=1, device=torch.device("cpu"))
    optimizer = make_optimizer(model, recipe.optimizer)
    tokens = torch.randint(0, VOCAB, (2, 1, seq_len), generator=torch.Generator().manual_seed(0))
    batch, steps = MicroBatch(tokens[0], tokens[1]), iter(range(1, 1000))

    def step() -> None:
        train_step(model, optimizer, [batch], n_parts=seq_len, number=next(steps), lr=1e-4, max_grad_norm=1.0)

    cpu_seconds(step, 2)
    return {"a step": cpu_seconds(step, times), "memory of training": [memory()]}


def estimate(config: ModelConfig, seq_len: int) -> float:
    told = {"micro_batch_size": 1, "seq_len": seq_len, "shards": 1, "precision": "fp32", "device": "cpu"}
    return float(training_memory(config, savings=Savings(activation_checkpointing="none"), **told)["total"])


def model_axis() -> Iterator[Series]:
    """Width of a model of 4 layers, 512 tokens a step."""
    seq_len = 512
    shapes = [shape(width) for width in WIDTHS]
    xs = [float(n_params(config)) for config in shapes]
    found = dict(along(WIDTHS, step_cost, seq_len))
    flops = [float(flops_per_token(config, seq_len)) for config in shapes]
    yield Series("a step", "CPU s", xs, found["a step"], flops, note="operations by the formula of MFU")
    plan = [estimate(config, seq_len) for config in shapes]
    yield Series("memory of training", "bytes", xs, found["memory of training"], plan, note="the plan's estimate")


def sequence_axis() -> Iterator[Series]:
    """Length of one sequence, a model of 4 layers and width 256."""
    width, config = 256, shape(256)
    found = [in_child(step_cost, width, length) for length in LENGTHS]
    values = {name: [one[name] for one in found] for name in found[0]}
    flops = [float(flops_per_token(config, length) * length) for length in LENGTHS]
    yield Series("a step", "CPU s", LENGTHS, values["a step"], flops, note="operations, formula of MFU")
    plan = [estimate(config, length) for length in LENGTHS]
    yield Series("memory of training", "bytes", LENGTHS, values["memory of training"], plan, note="the plan's estimate")


# -- ranks ---
RANKS = (1, 2, 4)
TRAINED = {
    "model.dim": 128, "model.n_layers": 4, "model.ffn_dim": 512, "model.vocab_size": 512, "model.max_seq_len": 256,
    "data.seq_len": 128, "train.max_steps": 14, "checkpoint.every_steps": None,
}  # fmt: skip
A_RANK = 8  # sequences a step


def train_as(rank: int, env: dict[str, str], url: str) -> dict[str, Values]:
    """CPU seconds from each step to the next, of a whole worker."""
    os.environ |= {**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    step, last, found = numbers.train_step, [0.0], Values()

    def watched(*args: Any, **kwargs: Any) -> Any:
        now = time.process_time()
        if last[0]:
            found.append(now - last[0])
        last[0] = now
        return step(*args, **kwargs)

    numbers.train_step = watched
    if worker_main(["worker", url]):
        raise RuntimeError(f"rank {rank} failed; its errors lie under {url}")
    return {"CPU": found[3:]}


def ranks_at_once(ranks: int, function: Callable[..., dict[str, Values]], *args: Any) -> list[dict[str, Values]]:
    """What a function of a rank finds, run in so many processes at once."""
    with tempfile.TemporaryDirectory() as folder:
        pids = []
        for rank in range(ranks):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    found = function(rank, *args)
                    Path(folder, str(rank)).write_text(json.dumps(found))
                    code = 0
                finally:
                    os._exit(code)
            pids.append(pid)
        codes = [os.waitpid(pid, 0)[1] for pid in pids]
        if any(codes):
            raise RuntimeError(f"{function.__name__} failed in some of {ranks} ranks: {codes}")
        return [dict(json.loads(Path(folder, str(rank)).read_text())) for rank in range(ranks)]


def trained(ranks: int) -> tuple[Values, Values]:
    """(CPU seconds of all ranks for 1,000 tokens, seconds that a step waited for others), of steps."""
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(Path(folder, "data"), n_tokens=40_000)
        run = make_run(f"{folder}/run", data, {**TRAINED, "train.global_batch_size": A_RANK * ranks})
        attempt = claim(run, ranks, {})
        env = {
            "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()), "LAUNCHYARD_ATTEMPT": str(attempt),
        }  # fmt: skip
        found = ranks_at_once(ranks, train_as, env, run.url)
        waits = [float(row["phases"].get("collective_wait", 0.0)) for row in run.rows("steps")][3:]
    tokens = A_RANK * ranks * TRAINED["data.seq_len"]
    return [sum(step) / tokens * 1e3 for step in zip(*(one["CPU"] for one in found), strict=True)], waits


def ranks_axis() -> Iterator[Series]:
    """Workers on gloo, each with the same work: 8 sequences of 128 tokens of a model of 0.9M parameters."""
    found = [trained(ranks)[0] for ranks in RANKS]
    yield Series(
        "1,000 tokens, all ranks",
        "CPU s",
        RANKS,
        found,
        [1.0] * len(RANKS),
        note="from 2 on the gradients and weights go over gloo, which is the first step up",
    )


# -- the agreement ---
AGREEING = (2, 4, 8, 16, 32, 64)
HOP_SECONDS = 30e-6  # of a small message between two machines, kernels included


def agree_as(rank: int, ranks: int, store: str, extra: int, times: int) -> dict[str, Values]:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, ranks), rank=rank, world_size=ranks)
    numbers_of_a_step = torch.ones(11 + extra, dtype=torch.int64)
    found: dict[str, Values] = {}
    for name, way in {"ours": sum_over_ranks, "ring": dist.all_reduce}.items():
        for _ in range(3):
            way(numbers_of_a_step.clone())
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(times):
            way(numbers_of_a_step.clone())
        found[name] = [(time.process_time() - cpu) / times]
        found[f"{name}, wall"] = [(time.perf_counter() - wall) / times]
    dist.barrier()
    return found


def agreement_axis() -> Iterator[Series]:
    """Ranks that sum the numbers of a step, with one number a rank, as in every tenth step; real gloo, on this machine.

    The CPU time of one rank is what it costs on machines of their own. Its wall time there is by a model: messages one
    after the other, each of HOP_SECONDS.
    """
    found = []
    for ranks in AGREEING:
        with tempfile.TemporaryDirectory() as folder:
            all_ranks = ranks_at_once(ranks, agree_as, ranks, f"{folder}/store", ranks, max(8, 400 // ranks))
        found.append({name: [of[name][0] for of in all_ranks] for name in all_ranks[0]})
    yield Series(
        "agreement, a rank", "CPU s", AGREEING, [one["ours"] for one in found],
        [float(pairs(ranks)) for ranks in AGREEING], note="messages of a rank: log2 of the ranks",
    )  # fmt: skip
    yield Series(
        "the same by gloo's ring", "CPU s", AGREEING, [one["ring"] for one in found],
        [float(ring(ranks)) for ranks in AGREEING], note="2 (ranks - 1) messages",
    )  # fmt: skip


def pairs(ranks: int) -> int:
    """Messages one after the other of a sum by pairs."""
    return math.ceil(math.log2(ranks))


def ring(ranks: int) -> int:
    """Messages one after the other of a sum in a ring."""
    return 2 * (ranks - 1)


# -- the host's work at many ranks ---
MANY = (1, 16, 64, 256, 1024)


def host_side(ranks: int) -> dict[str, Values]:
    """All that rank 0 does for the telemetry of a step but the sum itself, and reading the addresses of all ranks."""
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(folder)
        world, clock, exporter = (
            World(0, 0, ranks, 0, 0, folder, None, "here"),
            PhaseClock(),
            Exporter(rank=0, host=None),
        )
        recorder = Recorder(
            world, Instruments(clock, exporter, Events(run, world, log=open(os.devnull, "w"))),  # noqa: SIM115
            device=torch.device("cpu"), flops=Flops(1e9, 0.0, None),
        )  # fmt: skip
        computed = [100_000] * ranks
        numbers_of_steps = iter(range(1, 10**6))

        def step() -> None:
            number = next(numbers_of_steps)
            votes = recorder.compute_votes(number)
            summed = torch.tensor([0] * 11 + votes, dtype=torch.int64).tolist()
            recorder.ranks_computed(number, computed[: len(summed) - 11])
            row = {"step": number, "loss": 3.0, "grad_norm": 1.0, "lr": 1e-3, "labels": 1024, "step_seconds": 0.1}
            recorder.step(row, 1024)

        def steps() -> None:
            for _ in range(100):
                step()

        steps()
        rounds = [seconds / 100 for seconds in cpu_seconds(steps, 7)]
        for rank in range(ranks):
            run.register_target(0, Target(rank=rank, url=f"http://n:{rank}/metrics", node="n", time=1.0))
        return {"a step": rounds, "addresses": cpu_seconds(lambda: run.targets(0), 3)}


def host_axis() -> Iterator[Series]:
    """Rank 0's host at so many ranks, simulated: no other rank is there."""
    found = dict(along(MANY, host_side))
    yield Series(
        "a step",
        "CPU s",
        MANY,
        found["a step"],
        [float(ranks) for ranks in MANY],
        note="every tenth step has a number of each rank",
    )
    yield Series(
        "addresses of all ranks read",
        "CPU s",
        MANY,
        found["addresses"],
        [float(ranks) for ranks in MANY],
        note="a file a rank, read by `launch monitor` and not by training",
    )


# -- chunks ---
CHUNKS = (100, 1000, 10_000)
CHUNK_TOKENS = 1000


def write_many_chunks(folder: Path, count: int) -> None:
    tokens = (np.arange(CHUNK_TOKENS) % 97).astype(np.uint16)
    write_chunks(folder, [tokens] * count)
    raw = (folder / "chunk-0-0.bin").read_bytes()
    one = {"bytes": len(raw), "tokens": CHUNK_TOKENS, "xxh3": xxhash.xxh3_64_hexdigest(raw)}
    digests = {"format": 1, "chunks": {f"chunk-0-{number}.bin": one for number in range(count)}}
    (folder / "digests.json").write_text(json.dumps(digests))


def read_chunks(count: int) -> dict[str, Values]:
    found: dict[str, Values] = {"open": [], "first batch": [], "far batch": []}
    with tempfile.TemporaryDirectory() as folder:
        write_many_chunks(Path(folder, "train"), count)
        memory = PeakBytes()
        for _ in range(3):
            began = time.process_time()
            store = TokenStore(f"{folder}/train", vocab_size=97)
            reader = TokenReader([store], seq_len=64, global_batch_size=8, seed=1)
            opened = time.process_time()
            reader.batch(0)
            first = time.process_time()
            reader.batch(10**9)
            far = time.process_time()
            for name, seconds in zip(found, (opened - began, first - opened, far - first), strict=True):
                found[name].append(seconds)
    return {**found, "memory": [memory()]}


def chunks_axis() -> Iterator[Series]:
    """Chunks of a folder."""
    found = dict(along(CHUNKS, read_chunks))
    flat, line = [1.0] * len(CHUNKS), [float(count) for count in CHUNKS]
    yield Series("open", "CPU s", CHUNKS, found["open"], line, note="the two lists of chunks are read")
    yield Series("first batch", "CPU s", CHUNKS, found["first batch"], flat)
    yield Series("batch of step 1,000,000,000", "CPU s", CHUNKS, found["far batch"], flat)
    yield Series("memory", "bytes", CHUNKS, found["memory"], line)


# -- length of a run ---
STEPS = (1000, 10_000, 100_000)
HELD = "56 bytes a step, for medians of its phases and its speed; the page and its libraries are the rest"


def write_long_run(folder: str, steps: int) -> RunDir:
    """A finished run of so many steps, as its worker would have left it."""
    run = make_run(f"{folder}/run", write_data(Path(folder, "data")), {"train.max_steps": steps})
    began = time.time() - steps
    attempt = claim(run, 1, {}, created=began)
    rows = Appender(run, f"metrics/steps-{attempt:04d}", flush_seconds=10.0)
    phases = {"data_wait": 0.001, "forward_backward": 0.8, "optimizer": 0.1, "collective_wait": 0.0, "other": 0.001}
    for number in range(1, steps + 1):
        rows.add({
            "step": number, "loss": 3 + 100 / (number + 10), "grad_norm": 1.0, "lr": 1e-3, "tokens": 192,
            "labels": 192, "tokens_seen": 192 * number, "step_seconds": 1.0, "tokens_per_second": 192.0,
            "data_wait_seconds": 0.001, "data_hash": f"{number:016x}", "phases": phases, "attempt": attempt,
            "time": began + number,
        })  # fmt: skip
    rows.flush()
    events = Appender(run, f"attempts/{attempt:04d}/events")
    for number in range(max(1, steps // 100), steps + 1, max(1, steps // 100)):
        events.add({"event": SAVED, "step": number, "seconds": 0.1, "bytes": 1, "time": began + number})
    events.flush()
    run.write_outcome(OutcomeRecord(outcome="stopped", reason="stop", attempt=attempt, step=steps, time=time.time()))
    return run


def read_run(steps: int) -> dict[str, Values]:
    with tempfile.TemporaryDirectory() as folder:
        run = write_long_run(folder, steps)
        found = {"status": cpu_seconds(lambda: state_of(run), 3)}
        memory = PeakBytes()
        found["metrics"] = cpu_seconds(lambda: "\n".join(step_table(run.rows("steps"))), 1 if steps > 5e4 else 3)
        found["report"] = cpu_seconds(lambda: report_page(read_story(run)), 1 if steps > 5e4 else 3)
        found["report's memory"] = [memory()]
        found["account"] = cpu_seconds(lambda: Account._earlier(_account(run)), 1 if steps > 5e4 else 3)
    return found


def _account(run: RunDir) -> Account:
    """One that has not begun to read."""
    account = Account.__new__(Account)
    account._run, account._attempt = run, 1
    return account


def length_axis() -> Iterator[Series]:
    """Steps of a run."""
    found = dict(along(STEPS, read_run))
    flat, line = [1.0] * len(STEPS), [float(count) for count in STEPS]
    yield Series("launch status", "CPU s", STEPS, found["status"], flat)
    yield Series("launch metrics", "CPU s", STEPS, found["metrics"], line)
    yield Series("launch report", "CPU s", STEPS, found["report"], line)
    yield Series("memory of the report", "bytes", STEPS, found["report's memory"], line, note=HELD)
    yield Series(
        "account of time at a resume",
        "CPU s",
        STEPS,
        found["account"],
        line,
        note="by a thread, beside the first steps",
    )


AXES: dict[str, Callable[[], Iterator[Series]]] = {
    "model": model_axis,
    "sequence": sequence_axis,
    "ranks": ranks_axis,
    "agreement": agreement_axis,
    "host": host_axis,
    "chunks": chunks_axis,
    "length": length_axis,
}
