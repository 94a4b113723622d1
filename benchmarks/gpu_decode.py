"""Decoding on a GPU: the part of its memory's bandwidth that writing takes, with graphs and without.

    python benchmarks/gpu_decode.py [--preset llama-3.2-1b | --model FOLDER] [--weights bf16,int8,int4] [--texts 1,8]
                                    [--prompt 128] [--new 256] [--runs 5] [--device cuda] [--peak-bytes 3.35e12]

Weights of a preset are random. A token needs all matrices once, of experts those that are chosen, and the keys and
values of each text up to it: these bytes by the seconds of a step are the bandwidth. That of the device is of its data
sheet (`model/devices.py`), or given. With and without graphs in turn, wall time; decode leaves the prefill out: time
of 1 + NEW tokens less time of 1 token. On a CPU (`--device cpu`) there are no graphs. Never run on a GPU so far.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from launchyard.model.config import ModelConfig
from launchyard.model.devices import peak_bytes
from launchyard.model.layout import parameter_shapes
from launchyard.model.network.init import initial_rows
from launchyard.model.network.transformer import Transformer
from launchyard.model.serve.engine import Engine
from launchyard.model.serve.requests import Request
from launchyard.model.serve.sampling import Sampling
from launchyard.model.weights.hf_export import save_hf
from launchyard.model.weights.load import load
from launchyard.model.zoo import preset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="llama-3.2-1b")
    parser.add_argument("--model", help="a folder, instead of a preset with random weights")
    parser.add_argument("--weights", default="bf16,int8,int4", help="names of `launch generate --weights`, by commas")
    parser.add_argument("--texts", default="1,8", help="so many at once, by commas")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--peak-bytes", type=float, help="per second, of the device's memory")
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.exit(message="no GPU on this machine\n")
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(folder, options), indent=1))


def measure(folder: str, options: argparse.Namespace) -> dict[str, object]:
    place = options.model or write_preset(options.preset, folder)
    on_gpu = options.device != "cpu"
    name = torch.cuda.get_device_name(options.device) if on_gpu else "CPU"
    peak = options.peak_bytes or (peak_bytes(name) if on_gpu else None)
    rows = [
        row
        for form in options.weights.split(",")
        for n_texts in map(int, options.texts.split(","))
        for row in measure_form(place, form, n_texts, peak, options)
    ]
    return {
        "model": options.model or options.preset, "device": name, "peak bytes/s": peak, "torch": torch.__version__,
        "prompt": options.prompt, "new": options.new, "runs": options.runs, "decode": rows,
    }  # fmt: skip


def write_preset(name: str, folder: str) -> str:
    config = preset(name)
    weights = {key: initial_rows(config, key, shape, seed=0) for key, shape in parameter_shapes(config).items()}
    save_hf(weights, config, folder, dtype=torch.bfloat16)
    return folder


def measure_form(
    place: str, form: str, n_texts: int, peak: float | None, options: argparse.Namespace
) -> Iterator[dict[str, object]]:
    return measure_model(load(place, device=options.device, weights=form).transformer, form, n_texts, peak, options)


def random_model(config: ModelConfig, *, device: str, dtype: torch.dtype) -> Transformer:
    """Made where it is used: weights of 8B drawn on a CPU take a minute."""
    with torch.device("meta"):
        model = Transformer(config).to(dtype)
    model.to_empty(device=device)
    if config.tie_embeddings:
        model.lm_head.weight = model.embed.weight
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    return model.requires_grad_(False).eval()


def measure_model(
    model: Transformer, form: str, n_texts: int, peak: float | None, options: argparse.Namespace
) -> Iterator[dict[str, object]]:
    kinds = {"graphs": None, "no graphs": False} if options.device != "cpu" else {"no graphs": False}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    words = {}
    for _ in range(options.runs):
        for kind, graphs in kinds.items():
            found, words[kind] = seconds_of_step(model, n_texts, graphs, options)
            seconds[kind].append(found)
    n_bytes = bytes_of_step(model, n_texts, options.prompt + options.new / 2)
    for kind, all_seconds in seconds.items():
        each = statistics.median(all_seconds)
        yield {
            "weights": form, "texts": n_texts, "decoding": kind, "said": words[kind],
            "tokens/s": round(n_texts / each, 1), "ms a step": summary([1e3 * one for one in all_seconds]),
            "GB a step": round(n_bytes / 1e9, 3), "GB/s": round(n_bytes / each / 1e9, 1),
            "part of peak": None if peak is None else round(n_bytes / each / peak, 3),
        }  # fmt: skip


def seconds_of_step(
    model: Transformer, n_texts: int, graphs: bool | None, options: argparse.Namespace
) -> tuple[float, str]:
    """The mean over NEW steps of an engine that has written once, so that its graphs are there; and its words."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(model.config.vocab_size, (n_texts, options.prompt), generator=generator).tolist()
    engine = Engine(model, n_slots=n_texts, length=options.prompt + options.new + 1, graphs=graphs)
    write(engine, prompts, 1 + options.new)
    start = write(engine, prompts, 1)
    whole = write(engine, prompts, 1 + options.new)
    return (whole - start) / options.new, engine.decoding.words


def write(engine: Engine, prompts: list[list[int]], new: int) -> float:
    began = time.perf_counter()  # each step ends with tokens on the host
    for prompt in prompts:
        engine.add(Request([*prompt], new, Sampling(0.0)))
    while not engine.is_idle:
        engine.step()
    return time.perf_counter() - began


def bytes_of_step(model: Transformer, n_texts: int, length: float) -> float:
    """That a step of texts of this length reads; of experts at most those that so many tokens choose."""
    config = model.config
    moe = config.moe
    part = 1.0 if moe is None else min(1.0, n_texts * moe.top_k / moe.n_experts)
    is_head = getattr(model.lm_head, "weight", None) is model.embed.weight
    total = 0.0
    for name, tensor in tensors_of(model):
        if name == "positions.weight" or (name == "embed.weight" and not is_head):
            continue  # a row each
        total += tensor.nbytes * (part if ".experts." in name else 1.0)
    cache = model.new_cache(batch_size=1, length=max(1, int(length)))
    kept = sum(block.whole_k.nbytes + block.whole_v.nbytes for block in cache.blocks)
    return total + n_texts * kept


def tensors_of(model: Transformer) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, a shared one once, and matrices in an order of their own."""
    yield from model.named_parameters()
    for name, module in model.named_modules():
        packed = getattr(module, "packed", None)
        if isinstance(packed, torch.Tensor):
            yield f"{name}.packed", torch.empty(module.out_features, module.in_features, dtype=module.dtype)


def summary(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


if __name__ == "__main__":
    main()
