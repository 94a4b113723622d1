"""Generation beside peers: the same weights, greedy, in turn, a process each; a whole text, its decode, and the load.

    python benchmarks/generate.py [--preset pythia-160m | --model FOLDER] [--sides auto,plain,int8,transformers,litgpt]
                                  [--texts 1] [--prompt 128] [--new 128] [--runs 7] [--device cpu]

Weights of a preset are random. A side is a peer, `plain`, which is a model as `load` gives it, or a name of `launch
generate --weights`. --texts: so many at once: ours in an engine of as many slots, a peer's as one batch of equal
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
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from results import Figures, over, tell

from launchyard.model.layout import parameter_shapes
from launchyard.model.network.init import initial_rows
from launchyard.model.serve.generate import generate_all
from launchyard.model.serve.requests import Request
from launchyard.model.serve.sampling import Sampling
from launchyard.model.weights.hf_export import save_hf
from launchyard.model.weights.load import load, open_weights
from launchyard.model.zoo import preset

Prompts = list[list[int]]
Run = Callable[[Prompts, int], list[list[int]]]
Found = dict[str, Any]


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
    parser.add_argument("--sides", default="auto,transformers", help="by commas; of peers: " + ", ".join(PEERS))
    parser.add_argument("--texts", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.child:
        answer(options, *options.child)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = measure(folder, options)
    print(json.dumps({name: value for name, value in found.items() if name != "figures"}, indent=1))
    tell(found["figures"])


# -- in the parent ---------------------------------------------------------------------------------------------------
def measure(folder: str, options: argparse.Namespace) -> Found:
    if options.model:
        folder = options.model
    else:
        config = preset(options.preset)
        weights = {key: initial_rows(config, key, shape, seed=0) for key, shape in parameter_shapes(config).items()}
        save_hf(weights, config, folder, dtype=getattr(torch, options.dtype))
    names = options.sides.split(",")
    with contextlib.ExitStack() as stack:
        children = {name: stack.enter_context(child(name, folder)) for name in names}
        opened = {name: heard(children[name]) for name in names}
        rounds = []
        for _ in range(options.runs):
            rounds.append({name: asked(children[name]) for name in names})
            print(json.dumps(rounds[-1]), file=sys.stderr, flush=True)
    found: Found = {
        "model": options.model or options.preset, "texts": options.texts, "prompt": options.prompt, "new": options.new,
        "device": options.device, "torch": torch.__version__, "machine": platform.processor() or platform.machine(),
        "rounds": options.runs, "load seconds": {name: own["load"] for name, own in opened.items()},
    }  # fmt: skip
    peers = [name for name in names if name in PEERS]
    for peer in peers:
        same = {name: agreement(own["first"], opened[peer]["first"]) for name, own in opened.items()}
        found[f"first 16 greedy ids that are those of {peer}"] = same
    for what in rounds[0][names[0]]:
        values = {name: [speeds[name][what] for speeds in rounds] for name in names}
        found[what] = {name: summary(own) for name, own in values.items()}
        for peer in peers:
            found[f"{what}, ratio to {peer}"] = {name: ratio(own, values[peer]) for name, own in values.items()}
    found["figures"] = figures_of(rounds, names)
    return found


def figures_of(rounds: list[Found], names: list[str]) -> Figures:
    what = next(what for what in rounds[0][names[0]] if what.startswith("decode"))
    values = {name: [speeds[name][what] for speeds in rounds] for name in names}
    ratios = {f"{names[0]} / {peer}": over(values[names[0]], values[peer]) for peer in names[1:]}
    return {f"{what}, {name}": own for name, own in values.items()} | ratios


@contextlib.contextmanager
def child(name: str, folder: str) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, __file__, *sys.argv[1:], "--child", name, folder]
    threads = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=threads) as process:
        yield process  # its end is that of its input


def asked(process: subprocess.Popen[str]) -> Found:
    assert process.stdin is not None
    process.stdin.write("again\n")
    process.stdin.flush()
    return heard(process)


def heard(process: subprocess.Popen[str]) -> Found:
    assert process.stdout is not None
    found: Found = json.loads(process.stdout.readline())
    return found


def agreement(found: list[list[int]], expected: list[list[int]]) -> float:
    pairs = [
        one == other
        for own, theirs in zip(found, expected, strict=True)
        for one, other in zip(own, theirs, strict=True)
    ]
    return round(sum(pairs) / len(pairs), 3)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of those of each round: what slows the machine for a while slows both sides."""
    return round(statistics.median(one / other for one, other in zip(ours, theirs, strict=True)), 3)


def summary(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


# -- in the child ----------------------------------------------------------------------------------------------------
def answer(options: argparse.Namespace, name: str, folder: str) -> None:
    """A line at first, and one more for each that comes."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # peers write of their own
    make = PEERS.get(name, open_ours)
    make(name, folder, options)  # the first time modules are imported, or weights brought into a form of the peer's
    start = Spent.now()
    run = make(name, folder, options)
    seconds = round(Spent.now().since(start).wall, 2)
    shape = (options.texts, options.prompt)
    n_ids = open_weights(folder)[0].vocab_size
    prompts = torch.randint(n_ids, shape, generator=torch.Generator().manual_seed(0)).tolist()
    print(json.dumps({"load": seconds, "first": run(prompts, 16)}), file=answers)
    for _ in sys.stdin:
        print(json.dumps(speeds(run, prompts, options)), file=answers)


def speeds(run: Run, prompts: Prompts, options: argparse.Namespace) -> dict[str, float]:
    """New tokens per second: of those after the first of each text, and of all with the reading of the prompt."""
    start = Spent.now()
    run(prompts, 1)
    first = Spent.now().since(start)
    start = Spent.now()
    made = run(prompts, 1 + options.new)
    whole = Spent.now().since(start)
    assert [len(own) for own in made] == [1 + options.new] * len(prompts)
    found = {}
    for clock in ("cpu", "wall") if options.device == "cpu" else ("wall",):
        one = getattr(first, clock)
        every = getattr(whole, clock)
        found[f"decode tokens/s, {clock}"] = options.new * len(prompts) / (every - one)
        found[f"whole tokens/s, {clock}"] = (1 + options.new) * len(prompts) / every
    return found


def open_ours(name: str, folder: str, options: argparse.Namespace) -> Run:
    model = load(folder, device=options.device, weights=None if name == "plain" else name).transformer

    def run(prompts: Prompts, new: int) -> list[list[int]]:
        requests = [Request(prompt, new, Sampling(0.0)) for prompt in prompts]
        return [generation.new for generation in generate_all(model, requests, n_slots=len(prompts))]

    return run


def open_transformers(name: str, folder: str, options: argparse.Namespace) -> Run:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, options.dtype)).to(options.device).eval()

    def run(prompts: Prompts, new: int) -> list[list[int]]:
        ids = torch.tensor(prompts, device=options.device)
        mask = torch.ones_like(ids)
        out = model.generate(ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False)
        return out[:, ids.shape[1] :].tolist()

    return run


def open_litgpt(name: str, folder: str, options: argparse.Namespace) -> Run:
    """Its model without what its command wraps it in, which would only cost it time."""
    from litgpt.config import Config
    from litgpt.generate.base import batched_generate_fn, generate
    from litgpt.model import GPT
    from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint

    converted = Path(folder) / "lit_model.pth"
    if not converted.exists():
        convert_hf_checkpoint(Path(folder), model_name=None if options.model else options.preset)
    with torch.device(options.device):
        model = GPT(Config.from_file(Path(folder) / "model_config.yaml")).to(getattr(torch, options.dtype)).eval()
    model.load_state_dict(torch.load(converted, mmap=True, weights_only=True))

    def run(prompts: Prompts, new: int) -> list[list[int]]:
        ids = torch.tensor(prompts, device=options.device)
        length = ids.shape[1] + new
        with torch.device(options.device):
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


PEERS: Mapping[str, Callable[[str, str, argparse.Namespace], Run]] = {
    "transformers": open_transformers,
    "litgpt": open_litgpt,
}


if __name__ == "__main__":
    main()
