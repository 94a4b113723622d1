"""Import and first token against transformers: random Hugging Face folders in bf16, a fresh process each, in turn.

    python benchmarks/import_model.py [--shapes qwen2.5-0.5b llama-0.5b] [--runs 7] [--files "one file" sharded]
                                     [--only memory|speed]

Speed: wall seconds from the start of the process to the first token (with the text of the prompt, so the tokenizer
counts), with the files in the page cache; pairs of runs, one after the other. Memory: the peak resident set of the
process, mapped files included, less what it was with all modules imported, over the bytes of the weights it holds; of
`load` as stored and in float32, and of an import for training (fp32, one rank). Needs transformers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": {"preset": "qwen2.5-0.5b"},
    "llama-0.5b": {
        "family": "llama", "dim": 1280, "n_layers": 22, "n_heads": 20, "n_kv_heads": 4, "ffn_dim": 3456,
        "vocab_size": 32000, "max_seq_len": 4096,
    },
    "llama-0.2b": {
        "family": "llama", "dim": 1024, "n_layers": 12, "n_heads": 16, "n_kv_heads": 4, "ffn_dim": 2816,
        "vocab_size": 32000, "max_seq_len": 4096,
    },
    "neox-0.2b": {"preset": "pythia-160m"},
}  # fmt: skip
PROMPT = "the capital of france is"
SHARD_BYTES = {"one file": 10**12, "sharded": 300_000_000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["qwen2.5-0.5b", "llama-0.5b"], choices=SHAPES)
    parser.add_argument("--files", nargs="+", default=list(SHARD_BYTES), choices=SHARD_BYTES)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--only", choices=["memory", "speed"])
    parser.add_argument("--child", nargs=2, metavar=("WORK", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(CHILDREN[options.child[0]](options.child[1])))
        return
    for shape in options.shapes:
        for form in options.files:
            with tempfile.TemporaryDirectory() as folder:
                make_folder(Path(folder), SHAPES[shape], SHARD_BYTES[form])
                facts: dict[str, object] = {"model": shape, "files": form}
                if options.only != "memory":
                    facts |= speed(folder, options.runs)
                if options.only != "speed":
                    facts |= memory(folder)
                print(json.dumps(facts, indent=1), flush=True)


# -- in the parent ---------------------------------------------------------------------------------------------------
def make_folder(folder: Path, shape: dict[str, Any], max_file_bytes: int) -> None:
    import torch

    from launchyard.model.layout import parameter_shapes
    from launchyard.model.weights.hf_export import save_hf
    from launchyard.model.zoo import make_config

    fields = {key: value for key, value in shape.items() if key != "preset"}
    config = make_config(preset=shape.get("preset"), fields=fields, hf=None)

    tensors = {key: (torch.randn(size) * 0.02).bfloat16() for key, size in parameter_shapes(config).items()}
    save_hf(tensors, config, str(folder), max_file_bytes=max_file_bytes)
    write_tokenizer(folder, config.vocab_size)


def write_tokenizer(folder: Path, n_tokens: int) -> None:
    """A byte-level BPE of so many tokens: all bytes, and merges of those in the order in which they can be made."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = {letter: number for number, letter in enumerate(letters)}
    merges: list[tuple[str, str]] = []
    for first in (pair for pair in list(tokens) for _ in (0,)):
        merges += [(first, second) for second in letters]
    merges += [(first + second, third) for first, second in merges[:3000] for third in letters]
    for first, second in merges[: n_tokens - len(letters)]:
        tokens[first + second] = len(tokens)
    raw = Tokenizer(models.BPE(vocab=tokens, merges=merges[: n_tokens - len(letters)]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def speed(folder: str, runs: int) -> dict[str, object]:
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    peaks: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(runs + 1):  # the first fills the page cache and does not count
        for who in seconds if number % 2 else reversed(seconds):
            took, facts = run_child(who, folder)
            if number:
                seconds[who].append(took)
                peaks[who].append(facts["peak"] / 1e6)
    pairs = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["theirs"], strict=True)]
    return {
        "seconds to the first token": {who: summary(values) for who, values in seconds.items()},
        "theirs over ours": summary(pairs),
        "peak resident MB": {who: summary(values) for who, values in peaks.items()},
    }


def memory(folder: str) -> dict[str, object]:
    found: dict[str, object] = {}
    for work in ("load", "load fp32", "train"):
        _, facts = run_child(work, folder)
        found[work] = round((facts["peak"] - facts["before"]) / facts["weights"], 3)
    return {"peak memory over weights": found}


def run_child(work: str, folder: str) -> tuple[float, dict[str, Any]]:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    began = time.perf_counter()
    command = [sys.executable, __file__, "--child", work, folder]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    return time.perf_counter() - began, json.loads(done.stdout.splitlines()[-1])


def summary(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 2), "min": round(min(values), 2), "max": round(max(values), 2)}


# -- in a child ------------------------------------------------------------------------------------------------------
def first_token_of_ours(folder: str) -> dict[str, float]:
    from launchyard.model.weights.load import load

    text = load(folder, device="cpu").generate(PROMPT, max_new_tokens=1, temperature=0)
    return {"peak": peak_bytes(), "letters": len(text)}


def first_token_of_theirs(folder: str) -> dict[str, float]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    with torch.inference_mode():
        logits = model(**tokenizer(PROMPT, return_tensors="pt")).logits
    text = tokenizer.decode(logits[0, -1].argmax())
    return {"peak": peak_bytes(), "letters": len(text)}


def load_whole(folder: str, dtype: str | None = None) -> dict[str, float]:
    import torch

    from launchyard.model.weights.load import load

    before = peak_bytes()
    model = load(folder, device="cpu", dtype=getattr(torch, dtype) if dtype else None).transformer
    tensors = {id(p): p for p in model.parameters()}.values()
    assert all(bool(p.view(-1)[:: 4096 // p.itemsize].float().abs().sum() >= 0) for p in tensors)  # every page is read
    return {"peak": peak_bytes(), "before": before, "weights": sum(p.nbytes for p in tensors)}


def import_to_train(folder: str) -> dict[str, float]:
    import torch

    from launchyard.model.weights.source import read_config
    from launchyard.training.build import build_model
    from launchyard.training.recipe import Recipe

    config = read_config(folder)
    recipe = Recipe.model_validate(
        {"model": {"init_from": folder}, "name": "import", "data": {}, "train": {"max_steps": 1}}
    )
    before = peak_bytes()
    model = build_model(config, recipe, world_size=1, device=torch.device("cpu"))
    weights = sum({id(p): p.nbytes for p in model.parameters()}.values())
    return {"peak": peak_bytes(), "before": before, "weights": weights}


CHILDREN = {
    "ours": first_token_of_ours,
    "theirs": first_token_of_theirs,
    "load": load_whole,
    "load fp32": lambda folder: load_whole(folder, "float32"),
    "train": import_to_train,
}


def peak_bytes() -> float:
    """Of this program alone; getrusage's would be that of the process it was started from, if that was larger."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024.0


if __name__ == "__main__":
    main()
