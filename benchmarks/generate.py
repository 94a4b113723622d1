"""Generation against transformers: the same weights, greedy, alternating runs; decode and load.

    python benchmarks/generate.py [--preset pythia-160m | --model FOLDER] [--weights plain,fp32,int8] [--texts 1]
                                  [--prompt 128] [--new 128] [--runs 7] [--device cpu]

Weights of a preset are random. `plain` is a model as `load` gives it, any other name its `weights=`. --texts: so many
at once: ours in an engine of as many slots, transformers' as one batch of equal lengths, which is the fastest that it
has. On a CPU time is CPU seconds of one thread, so that other load shifts it little; on a GPU wall time. Decode leaves
the prefill out: time of 1 + NEW tokens less time of 1 token. Needs transformers.
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
from functools import partial

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from launchyard.model.layout import parameter_shapes
from launchyard.model.network.init import initial_rows
from launchyard.model.serve.generate import generate_all
from launchyard.model.serve.requests import Request
from launchyard.model.serve.sampling import Sampling
from launchyard.model.weights.hf_export import save_hf
from launchyard.model.weights.load import load, open_weights
from launchyard.model.zoo import preset

Run = Callable[[list[list[int]], int], list[list[int]]]
THEIRS = "transformers"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="pythia-160m")
    parser.add_argument("--model", help="a folder, instead of a preset with random weights")
    parser.add_argument("--weights", default="plain", help="plain, and names of `launch generate --weights`, by commas")
    parser.add_argument("--texts", type=int, default=1)
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
    if options.model:
        config = open_weights(options.model)[0]
        folder = options.model
    else:
        config = preset(options.preset)
        weights = {key: initial_rows(config, key, shape, seed=0) for key, shape in parameter_shapes(config).items()}
        save_hf(weights, config, folder, dtype=getattr(torch, options.dtype))
    shape = (options.texts, options.prompt)
    prompts = torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(0)).tolist()
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    makers = {name: partial(open_ours, name) for name in options.weights.split(",")}
    makers[THEIRS] = partial(open_theirs, options.dtype)
    loads: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(options.runs):
        runs = {name: timed(make, loads[name], folder, options.device) for name, make in makers.items()}
    expected = runs[THEIRS](prompts, 16)
    same = {name: agreement(run(prompts, 16), expected) for name, run in runs.items() if name != THEIRS}
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.runs):
        for name, run in runs.items():
            speeds[name].append(decode_speed(run, prompts, options.new, clock))
    return {
        "model": options.model or options.preset, "texts": options.texts, "prompt": options.prompt, "new": options.new,
        "device": options.device, "torch": torch.__version__, "machine": platform.processor() or platform.machine(),
        "runs": options.runs, "first 16 greedy ids that are theirs": same,
        "decode tokens/s": {name: summary(values) for name, values in speeds.items()},
        "decode ratio": {name: ratio(values, speeds[THEIRS]) for name, values in speeds.items()},
        "load seconds": {name: summary(values) for name, values in loads.items()},
    }  # fmt: skip


def timed(make: Callable[[str, str], Run], seconds: list[float], folder: str, device: str) -> Run:
    began = time.perf_counter()
    run = make(folder, device)
    seconds.append(time.perf_counter() - began)
    return run


def open_ours(weights: str, folder: str, device: str) -> Run:
    model = load(folder, device=device, weights=None if weights == "plain" else weights).transformer

    def run(prompts: list[list[int]], new: int) -> list[list[int]]:
        requests = [Request(prompt, new, Sampling(0.0)) for prompt in prompts]
        return [generation.new for generation in generate_all(model, requests, n_slots=len(prompts))]

    return run


def open_theirs(dtype: str, folder: str, device: str) -> Run:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device).eval()

    def run(prompts: list[list[int]], new: int) -> list[list[int]]:
        ids = torch.tensor(prompts, device=device)
        mask = torch.ones_like(ids)
        out = model.generate(ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False)
        return out[:, ids.shape[1] :].tolist()

    return run


def agreement(found: list[list[int]], expected: list[list[int]]) -> float:
    pairs = [
        one == other
        for own, theirs in zip(found, expected, strict=True)
        for one, other in zip(own, theirs, strict=True)
    ]
    return round(sum(pairs) / len(pairs), 3)


def decode_speed(run: Run, prompts: list[list[int]], new: int, clock: Callable[[], float]) -> float:
    """Tokens per second after the first of each text."""
    start = clock()
    run(prompts, 1)
    middle = clock()
    made = run(prompts, 1 + new)
    assert [len(own) for own in made] == [1 + new] * len(prompts)
    return new * len(prompts) / ((clock() - middle) - (middle - start))


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median of those of each round: what slows the machine for a while slows both sides."""
    return round(statistics.median(one / other for one, other in zip(ours, theirs, strict=True)), 3)


def summary(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


if __name__ == "__main__":
    main()
