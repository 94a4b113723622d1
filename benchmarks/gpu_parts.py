"""What gpu.py measures, each part in a process of its own: `python benchmarks/gpu_parts.py PART FOLDER [cpu]`.

FOLDER takes runs and `result.json`. Weights and tokens are random. With `cpu` the same code runs in tiny sizes, and its
figures mean nothing.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

WARM = 6  # steps that are not counted: the compiler, and memory that is had once
SAVE_AT = 12  # the save whose stall is told
SEQ_LEN = 2048


@dataclass(frozen=True)
class Training:
    """One recipe: a preset, with other knobs where they are said."""

    preset: str
    micro_batch_size: int
    global_batch_size: int
    steps: int
    precision: str = "bf16"
    knobs: tuple[tuple[str, int], ...] = ()
    adapter: str | None = None
    saves: bool = False


EIGHT_B = (("n_layers", 4),)  # with all 32 and AdamW in fp32 its state takes 128 GB
TRAININGS = {
    "train-160m": Training("pythia-160m", 16, 64, 40, saves=True),
    "train-1b": Training("pythia-1b", 8, 32, 26, saves=True),
    "train-8b-bf16": Training("llama-3.1-8b", 4, 8, 14, knobs=EIGHT_B),
    "train-8b-fp8": Training("llama-3.1-8b", 4, 8, 14, "fp8", knobs=EIGHT_B),
    "train-llama-1b-bf16": Training("llama-3.2-1b", 8, 16, 14),
    "train-llama-1b-fp8": Training("llama-3.2-1b", 8, 16, 14, "fp8"),
    "lora-3b": Training("llama-3.2-3b", 2, 4, 14, adapter="lora"),
}
TINY = {
    "dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "head_dim": 16, "ffn_dim": 128, "vocab_size": 500,
    "padded_vocab_size": 512, "max_seq_len": 256,
}  # fmt: skip


def main() -> None:
    part, folder, *device = sys.argv[1:]
    is_tiny = device == ["cpu"]
    began = time.perf_counter()
    try:
        found = measure_of(part)(Path(folder), is_tiny)
    except Exception as error:  # a worker has taken the streams: this file is where it is told
        told = "".join(traceback.format_exception(error))[-4000:]
        found = {"error": f"{type(error).__name__}: {error}", "traceback": told}
    found["seconds in all"] = round(time.perf_counter() - began, 1)
    Path(folder, "result.json").write_text(json.dumps(found))


def measure_of(part: str) -> Callable[[Path, bool], dict[str, Any]]:
    if part in TRAININGS:
        return lambda folder, is_tiny: train(part, folder, is_tiny)
    return {
        "generate-1b": lambda folder, is_tiny: generate("llama-3.2-1b", is_tiny),
        "generate-8b": lambda folder, is_tiny: generate("llama-3.1-8b", is_tiny),
        "restart": restart,
        "attention": attention,
        "loss": loss,
    }[part]


# -- training ----------------------------------------------------------------------------------------------------------
def train(part: str, folder: Path, is_tiny: bool) -> dict[str, Any]:
    """Steps of the whole worker, data, rows and saves included; the one that saves is not among those counted."""
    from launchyard.run.rundir import RunDir
    from launchyard.training.trial.spec import RESULT
    from launchyard.training.trial.worker import main as worker

    training = TRAININGS[part]
    if training.precision == "fp8" and (is_tiny or find_spec("torchao") is None):
        return {"not measured": "fp8 needs a GPU of Hopper or newer, and torchao"}
    run = RunDir(str(write_run(folder, training, is_tiny)))
    if worker(["trial", run.url]):
        raise RuntimeError(run.errors(0)[-1]["traceback"])
    rows = list(run.rows("steps"))
    peak = run.read_json(RESULT)["peak"]
    return speeds(training, rows, is_tiny) | {"peak GB": round(peak / 1e9, 2), "last loss": round(rows[-1]["loss"], 3)}


def speeds(training: Training, rows: list[dict[str, Any]], is_tiny: bool) -> dict[str, Any]:
    from launchyard.model.adapter import Adapter
    from launchyard.model.cost import flops_per_token
    from launchyard.model.devices import peak_flops

    config, seq_len = model_of(training, is_tiny), length_of(is_tiny)
    saving = {SAVE_AT + 1, SAVE_AT + 2} if training.saves else set()
    counted = [row for row in rows if row["step"] > WARM and row["step"] not in saving]
    seconds = [row["step_seconds"] for row in counted]
    tokens = [after["tokens_seen"] - before["tokens_seen"] for before, after in pairwise(rows)]
    each = [n / row["step_seconds"] for n, row in zip(tokens, rows[1:], strict=True) if row in counted]
    rate = statistics.median(each)
    adapter = None if training.adapter is None else Adapter.model_validate({"kind": training.adapter, "r": 16})
    flops = flops_per_token(config, seq_len, adapter)
    attention = 12 * config.n_layers * config.n_heads * config.head_dim * seq_len
    peak = peak_flops(device_name())
    found: dict[str, Any] = {
        "tokens/s": round(rate, 1), "step s": spread(seconds), "steps": len(seconds),
        "MFU": None if peak is None else round(flops * rate / peak, 4),
        "MFU causal": None if peak is None else round((flops - attention / 2) * rate / peak, 4),
        "data wait share": round(sum(row["phases"]["data_wait"] for row in counted) / sum(seconds), 5),
    }  # fmt: skip
    if training.saves:
        of_save = [row for row in rows if row["step"] in (SAVE_AT, *saving)]
        stall = max(row["phases"].get("checkpoint_blocking", 0.0) for row in of_save)
        found |= {
            "checkpoint stall s": round(stall, 4),
            "step s while saved": spread([row["step_seconds"] for row in rows if row["step"] > SAVE_AT + 1]),
        }
    return found


def model_of(training: Training, is_tiny: bool) -> Any:
    from launchyard.model.config import ModelConfig
    from launchyard.model.zoo import preset

    knobs = dict(TINY if is_tiny else training.knobs)
    if is_tiny and "llama" in training.preset:
        knobs["n_kv_heads"] = 2
    return ModelConfig.model_validate({**preset(training.preset).model_dump(), **knobs})


def length_of(is_tiny: bool) -> int:
    return 128 if is_tiny else SEQ_LEN


def write_run(folder: Path, training: Training, is_tiny: bool) -> Path:
    """A run directory as `launch` writes it, with what a trial needs beside."""
    import yaml

    from launchyard.run.records import Job
    from launchyard.run.rundir import RunDir
    from launchyard.training.recipe import Recipe
    from launchyard.training.spec import Workload
    from launchyard.training.trial.spec import TRIAL, Trial

    config = model_of(training, is_tiny)
    batch, micro = (4, 2) if is_tiny else (training.global_batch_size, training.micro_batch_size)
    steps = SAVE_AT + 4 if is_tiny else training.steps
    adapter = {"adapter": {"kind": training.adapter, "r": 16}} if training.adapter else {}
    kind = {"kind": "instruct"} if training.adapter else {}
    device = "cpu" if is_tiny else "cuda"
    recipe = Recipe.model_validate({
        "name": "gpu", "model": config.model_dump(exclude_none=True), **adapter,
        "data": {"source": "x", "seq_len": length_of(is_tiny), **kind},
        "train": {"max_steps": steps + 4, "global_batch_size": batch, "micro_batch_size": micro, "device": device,
                  "precision": "fp32" if is_tiny else training.precision},
        "parallel": {"compile": not is_tiny, "shard_level": 2},
        "checkpoint": {"every_minutes": None, "every_steps": SAVE_AT if training.saves else 10_000},
        "metrics": {"prometheus": False},
    })  # fmt: skip
    write = write_rows if training.adapter else write_tokens
    data = write(folder / "data", recipe, config.vocab_size, (steps + 4) * batch)
    run = RunDir(str(folder / "run"))
    run.write_text("recipe.yaml", yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True)))
    workload = Workload.model_validate({
        "run_id": "gpu", "name": "gpu", "model": config.model_dump(), "data": data, **adapter,
    })  # fmt: skip
    run.write_json("plan.json", workload.model_dump(mode="json"))
    run.claim_attempt(
        Job(
            attempt=0, backend="local", job_id="gpu", host="here", pid=os.getpid(), pid_started=0.0, created=0.0,
            nnodes=1, nproc_per_node=1, device=device, overrides={},
        )
    )  # fmt: skip
    run.write_json(TRIAL, Trial(n_steps=steps).model_dump(mode="json"))
    return folder / "run"


def write_tokens(folder: Path, recipe: Any, vocab_size: int, sequences: int) -> Any:
    import numpy as np
    from chunks import write_chunks  # beside this file

    from launchyard.training.spec import DataSpec, TokenSource

    n_tokens = recipe.data.seq_len * sequences + 1
    write_chunks(folder, np.random.default_rng(0).integers(0, min(vocab_size, 65_000), n_tokens, dtype=np.uint16))
    source = TokenSource(folder=str(folder), n_tokens=n_tokens)
    return DataSpec(train=(source,), validation=(), tokenizer=None, digest="x")


def write_rows(folder: Path, recipe: Any, vocab_size: int, sequences: int) -> Any:
    """Texts of 64 to 1,023 tokens (tiny: to 64), the second half of each with labels."""
    import numpy as np

    from launchyard.training.data.instruct.conversation import Row
    from launchyard.training.data.packs import count_packs
    from launchyard.training.data.prepare.rows import write_rows as written
    from launchyard.training.data.row_store import group_lengths
    from launchyard.training.spec import DataSpec, RowFacts, TokenSource

    random = np.random.default_rng(0)
    longest = recipe.data.seq_len // 2
    lengths = random.integers(longest // 16, longest, 3 * sequences)
    rows = ([Row(random.integers(0, vocab_size, n), np.arange(n) >= n // 2, "row")] for n in lengths)
    entry = written(rows, str(folder), chunk_tokens=1 << 20, validation=0.01, seed=1)["train"]
    where = f"{folder}/train"
    packs = count_packs(group_lengths(where, 1), epochs=1, capacity=recipe.data.seq_len, seed=recipe.data.seed)
    facts = RowFacts(rows=entry.documents, labels=entry.labels, longest=entry.longest, packs=packs, together=1)
    source = TokenSource(folder=where, n_tokens=entry.tokens, digest=entry.digest, instruct=facts)
    return DataSpec(train=(source,), validation=(), tokenizer=None, digest="rows")


# -- writing -----------------------------------------------------------------------------------------------------------
def generate(name: str, is_tiny: bool) -> dict[str, Any]:
    """One text, by graphs and without: tokens per second, and the part of the memory's bandwidth."""
    import argparse

    import gpu_decode  # beside this file
    import torch

    from launchyard.model.devices import peak_bytes

    device = "cpu" if is_tiny else "cuda"
    options = argparse.Namespace(prompt=8, new=8, runs=2, device=device)
    if not is_tiny:
        options = argparse.Namespace(prompt=128, new=128, runs=3, device=device)
    config = model_of(Training(name, 1, 1, 1), is_tiny)
    model = gpu_decode.random_model(config, device=device, dtype=torch.float32 if is_tiny else torch.bfloat16)
    peak = None if is_tiny else peak_bytes(device_name())
    return {"decode": list(gpu_decode.measure_model(model, "bf16", 1, peak, options))}


# -- restart -----------------------------------------------------------------------------------------------------------
def restart(folder: Path, is_tiny: bool) -> dict[str, Any]:
    """The bundled quickstart by the command: its first step, and SIGKILL of its worker to the next step after it."""
    launch = [sys.executable, "-m", "launchyard"]
    env = os.environ | {f"XDG_{kind}_HOME": str(folder / kind) for kind in ("STATE", "CACHE", "CONFIG")}
    run = str(folder / "run")
    words = [
        f"train.device={'cpu' if is_tiny else 'cuda'}", "train.max_steps=100000", "checkpoint.every_steps=50",
        "checkpoint.export=false", "validation.every_steps=100000", "metrics.prometheus=false",
    ]  # fmt: skip

    def told(*more: str) -> str:
        argv = [*launch, *more]
        return subprocess.run(argv, env=env, cwd=folder, check=True, capture_output=True, text=True).stdout

    began = time.perf_counter()
    told("--local", "--detach", "--run-url", run, *words)
    try:
        rows = Path(run, "metrics/steps-0000.jsonl")
        while not (rows.exists() and rows.read_bytes().count(b"\n") > 60):
            time.sleep(0.02)
        reached = time.perf_counter() - began
        drills = [json.loads(told("drill", "kill", run, "--json")) for _ in range(1 if is_tiny else 3)]
    finally:
        told("cancel", run)
    return {
        "the command to step 60 s": round(reached, 2),
        "SIGKILL to the next step s": spread([drill["first_step_seconds"] for drill in drills]),
        "steps lost": [drill["steps_lost"] for drill in drills],
    }


# -- choices that a GPU decides ----------------------------------------------------------------------------------------
def attention(folder: Path, is_tiny: bool) -> dict[str, Any]:
    """Forward and backward of torch's kernels, (batch, heads, tokens, head dim) in bf16, and which one torch takes."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    shapes = [(1, 2, 64, 16)] if is_tiny else [(16, 12, 2048, 64), (8, 8, 2048, 256), (4, 32, 2048, 128)]
    kinds = ["MATH"] if is_tiny else ["FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"]
    device = "cpu" if is_tiny else "cuda"
    found: dict[str, Any] = {}
    for shape in shapes:
        q, k, v = (torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))

        def once(q: Any = q, k: Any = k, v: Any = v) -> None:
            sdpa(q, k, v, is_causal=True).sum().backward()

        of_shape = {"as torch chooses": milliseconds(once, device)}
        for kind in kinds:
            try:
                with sdpa_kernel(getattr(SDPBackend, kind)):
                    of_shape[kind] = milliseconds(once, device)
            except RuntimeError as error:  # a kernel that does not take the shape
                of_shape[kind] = str(error).splitlines()[0]
        found["x".join(map(str, shape))] = of_shape
    return {"ms forward and backward": found}


def loss(folder: Path, is_tiny: bool) -> dict[str, Any]:
    """The head and its loss, forward and backward, with the most memory that they take beside what they are given."""
    import torch

    from launchyard.training.loss import linear_cross_entropy

    device = "cpu" if is_tiny else "cuda"
    shapes = [(64, 16, 300)] if is_tiny else [(32_768, 768, 50_304), (8192, 2048, 128_256), (8192, 4096, 128_256)]
    found: dict[str, Any] = {}
    for tokens, dim, vocab in shapes:
        hidden = torch.randn(tokens, dim, device=device, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.randn(vocab, dim, device=device, dtype=torch.bfloat16, requires_grad=True)
        labels = torch.randint(vocab, (tokens,), device=device)

        def once(hidden: Any = hidden, weight: Any = weight, labels: Any = labels) -> None:
            linear_cross_entropy(hidden, weight, labels, scale=1 / len(labels)).backward()

        row: dict[str, Any] = {"ms": milliseconds(once, device, rounds=3)}
        if device == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            once()
            row["peak GB"] = round((torch.cuda.max_memory_allocated() - before) / 1e9, 2)
            row["all logits in fp32 GB"] = round(4 * tokens * vocab / 1e9, 2)
        found[f"{tokens} tokens x {dim} x {vocab}"] = row
    return {"head and loss": found}


def milliseconds(once: Callable[[], None], device: str, rounds: int = 10) -> dict[str, float]:
    import torch

    once()
    once()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        once()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - began))
    return spread(times)


def device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def spread(values: list[float]) -> dict[str, float]:
    return {name: round(make(values), 4) for name, make in (("median", statistics.median), ("min", min), ("max", max))}


if __name__ == "__main__":
    main()
