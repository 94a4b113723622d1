"""Generation against transformers: the same random weights, greedy, alternating runs; decode and load.

    python benchmarks/generate.py [--preset pythia-160m] [--prompt 128] [--new 128] [--runs 7] [--device cpu]

On a CPU time is CPU seconds of one thread, so that other load shifts it little; on a GPU wall time. Decode leaves the
prefill out: time of 1 + NEW tokens less time of 1 token. Needs transformers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from launchyard.model.layout import parameter_shapes
from launchyard.model.network.init import initial_rows
from launchyard.model.serve.generate import generate
from launchyard.model.serve.requests import Request
from launchyard.model.serve.sampling import Sampling
from launchyard.model.weights.hf_export import save_hf
from launchyard.model.weights.load import load
from launchyard.model.zoo import preset

Run = Callable[[int], list[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="pythia-160m")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(folder, options), indent=1))


def measure(folder: str, options: argparse.Namespace) -> dict[str, object]:
    config = preset(options.preset)
    weights = {key: initial_rows(config, key, shape, seed=0) for key, shape in parameter_shapes(config).items()}
    save_hf(weights, config, folder, dtype=getattr(torch, options.dtype))
    prompt = torch.randint(config.vocab_size, (options.prompt,), generator=torch.Generator().manual_seed(0)).tolist()
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    loads: dict[str, list[float]] = {"launchyard": [], "transformers": []}
    for _ in range(options.runs):
        runs = {"launchyard": timed(open_ours, loads["launchyard"], folder, options.device)}
        runs["transformers"] = timed(open_theirs, loads["transformers"], folder, options.device)
    same = runs["launchyard"](prompt, 16) == runs["transformers"](prompt, 16)
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.runs):
        for name, run in runs.items():
            speeds[name].append(decode_speed(run, prompt, options.new, clock))
    ours, theirs = (statistics.median(speeds[name]) for name in runs)
    return {
        "model": options.preset, "prompt": options.prompt, "new": options.new, "device": options.device,
        "torch": torch.__version__, "machine": platform.processor() or platform.machine(), "runs": options.runs,
        "same greedy ids": same,
        "decode tokens/s": {name: summary(values) for name, values in speeds.items()},
        "decode ratio": round(ours / theirs, 3),
        "load seconds": {name: summary(values) for name, values in loads.items()},
    }  # fmt: skip


def timed(make: Callable[[str, str], Run], seconds: list[float], folder: str, device: str) -> Run:
    began = time.perf_counter()
    run = make(folder, device)
    seconds.append(time.perf_counter() - began)
    return run


def open_ours(folder: str, device: str) -> Run:
    model = load(folder, device=device).transformer
    return lambda prompt, new: list(generate(model, Request(prompt, new, Sampling(0.0))))


def open_theirs(folder: str, device: str) -> Run:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(device).eval()

    def run(prompt: list[int], new: int) -> list[int]:
        ids = torch.tensor([prompt], device=device)
        mask = torch.ones_like(ids)
        out = model.generate(ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False)
        return out[0, len(prompt) :].tolist()

    return run


def decode_speed(run: Run, prompt: list[int], new: int, clock: Callable[[], float]) -> float:
    """Tokens per second after the first."""
    start = clock()
    run(prompt, 1)
    middle = clock()
    made = run(prompt, 1 + new)
    assert len(made) == 1 + new
    return new / ((clock() - middle) - (middle - start))


def summary(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


if __name__ == "__main__":
    main()
