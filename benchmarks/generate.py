"""Generation beside peers: the same weights, greedy, alternating runs; a whole text, its decode, and the load.

    python benchmarks/generate.py [--preset pythia-160m | --model FOLDER] [--weights plain,auto,int8] [--texts 1]
                                  [--prompt 128] [--new 128] [--runs 7] [--device cpu] [--peers transformers,litgpt]

Weights of a preset are random. `plain` is a model as `load` gives it, any other name its `weights=`, and `auto` what
`launch generate` takes. --texts: so many at once: ours in an engine of as many slots, a peer's as one batch of equal
lengths, which is the fastest that it has. On a CPU times are CPU seconds of one thread, so that other load shifts them
little, and wall seconds beside them; on a GPU wall time. Decode leaves the prefill out: time of 1 + NEW tokens less
time of 1 token. Needs the peers; LitGPT takes a preset that it has by the same name.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

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


class Spent(NamedTuple):
    """Seconds: of one thread's CPU, and of the clock on the wall."""

    cpu: float
    wall: float

    @classmethod
    def now(cls) -> Spent:
        return cls(time.process_time(), time.perf_counter())

    def since(self, start: Spent) -> Spent:
        return Spent(self.cpu - start.cpu, self.wall - start.wall)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="pythia-160m")
    parser.add_argument("--model", help="a folder, instead of a preset with random weights")
    parser.add_argument("--weights", default="auto", help="plain, and names of `launch generate --weights`, by commas")
    parser.add_argument("--peers", default="transformers", help=f"some of {', '.join(PEERS)}, by commas")
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
    peers = options.peers.split(",")
    makers = {name: partial(open_ours, name) for name in options.weights.split(",")}
    makers |= {name: partial(PEERS[name], options) for name in peers}
    loads: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(options.runs):
        runs = {name: timed(make, loads[name], folder, options.device) for name, make in makers.items()}
    first = {name: run(prompts, 16) for name, run in runs.items()}
    rounds = []
    for _ in range(options.runs):
        rounds.append({name: speeds(run, prompts, options.new) for name, run in runs.items()})
    ours = [name for name in runs if name not in peers]
    clocks = ("cpu", "wall") if options.device == "cpu" else ("wall",)
    found: dict[str, object] = {
        "model": options.model or options.preset, "texts": options.texts, "prompt": options.prompt, "new": options.new,
        "device": options.device, "torch": torch.__version__, "machine": platform.processor() or platform.machine(),
        "runs": options.runs, "load seconds": {name: summary(values) for name, values in loads.items()},
        "first 16 greedy ids that are theirs": {
            peer: {name: agreement(first[name], first[peer]) for name in ours} for peer in peers
        },
    }  # fmt: skip
    for what in (f"{part} tokens/s, {clock}" for part in ("decode", "whole") for clock in clocks):
        values = {name: [speed[name][what] for speed in rounds] for name in runs}
        found[what] = {name: summary(own) for name, own in values.items()}
        found[f"ratio of {what}"] = {peer: {name: ratio(values[name], values[peer]) for name in ours} for peer in peers}
    return found


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


def open_transformers(options: argparse.Namespace, folder: str, device: str) -> Run:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, options.dtype)).to(device).eval()

    def run(prompts: list[list[int]], new: int) -> list[list[int]]:
        ids = torch.tensor(prompts, device=device)
        mask = torch.ones_like(ids)
        out = model.generate(ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False)
        return out[:, ids.shape[1] :].tolist()

    return run


def open_litgpt(options: argparse.Namespace, folder: str, device: str) -> Run:
    """Its model without what its command wraps it in, which would only cost it time."""
    from litgpt.config import Config
    from litgpt.generate.base import batched_generate_fn, generate
    from litgpt.model import GPT
    from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint

    converted = Path(folder) / "lit_model.pth"
    if not converted.exists():
        with contextlib.redirect_stdout(sys.stderr):
            convert_hf_checkpoint(Path(folder), model_name=None if options.model else options.preset)
    with torch.device(device):
        model = GPT(Config.from_file(Path(folder) / "model_config.yaml")).to(getattr(torch, options.dtype)).eval()
    model.load_state_dict(torch.load(converted, mmap=True, weights_only=True))

    def run(prompts: list[list[int]], new: int) -> list[list[int]]:
        ids = torch.tensor(prompts, device=device)
        length = ids.shape[1] + new
        with torch.device(device):
            model.clear_kv_cache()
            model.max_seq_length = length
            model.set_kv_cache(batch_size=len(ids))
        if len(ids) == 1:
            return [generate(model, ids[0], length, temperature=0.0, include_prompt=False).tolist()]
        made = batched_generate_fn(
            model, ids, length, sample_args={"temperature": 0.0}, include_prompt=False, include_eos=True
        )
        return torch.stack([torch.stack(step) for step in made])[..., 0].T.tolist()

    return run


PEERS: Mapping[str, Callable[[argparse.Namespace, str, str], Run]] = {
    "transformers": open_transformers,
    "litgpt": open_litgpt,
}


def agreement(found: list[list[int]], expected: list[list[int]]) -> float:
    pairs = [
        one == other
        for own, theirs in zip(found, expected, strict=True)
        for one, other in zip(own, theirs, strict=True)
    ]
    return round(sum(pairs) / len(pairs), 3)


def speeds(run: Run, prompts: list[list[int]], new: int) -> dict[str, float]:
    """New tokens per second: of those after the first of each text, and of all with the reading of the prompt."""
    start = Spent.now()
    run(prompts, 1)
    first = Spent.now().since(start)
    start = Spent.now()
    made = run(prompts, 1 + new)
    whole = Spent.now().since(start)
    assert [len(own) for own in made] == [1 + new] * len(prompts)
    found = {}
    for clock, one, all_of_them in zip(Spent._fields, first, whole, strict=True):
        found[f"decode tokens/s, {clock}"] = new * len(prompts) / (all_of_them - one)
        found[f"whole tokens/s, {clock}"] = (1 + new) * len(prompts) / all_of_them
    return found


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median of those of each round: what slows the machine for a while slows both sides."""
    return round(statistics.median(one / other for one, other in zip(ours, theirs, strict=True)), 3)


def summary(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


if __name__ == "__main__":
    main()
