"""The plan's memory and speed beside those of a real worker: `launch bench` of pythia in three sizes, one thread.

    python benchmarks/predicted.py [--only NAME] [--steps 3]

Micro-batches of 4 sequences of 512 tokens, fp32, AdamW, over random tokens. Tokens per second are those of the clock,
or on a machine with other work those that its CPU seconds make.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml
from chunks import write_chunks  # beside this file

FULL = "parallel.activation_checkpointing=full"
CASES = {
    "pythia-14m": ["model.preset=pythia-14m"],
    "pythia-70m": ["model.preset=pythia-70m"],
    "pythia-160m": ["model.preset=pythia-160m"],
    "pythia-14m, checkpointed": ["model.preset=pythia-14m", FULL],
    "pythia-70m, checkpointed": ["model.preset=pythia-70m", FULL],
    "pythia-70m, LoRA": ["model.preset=pythia-70m", "adapter.kind=lora"],
}
TOKENS = 2_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--steps", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_place(folder)
        for case in [given.only] if given.only else CASES:
            print(line(case, bench(folder, CASES[case], given.steps)), flush=True)


def write_place(folder: Path) -> None:
    """A recipe over random tokens, and this machine with one core."""
    tokens = np.random.default_rng(0).integers(0, 50277, TOKENS, dtype=np.uint16)
    write_chunks(folder / "tokens", tokens)
    train = {"max_steps": 100, "global_batch_size": 4, "micro_batch_size": 4, "device": "cpu", "precision": "fp32"}
    recipe = {"name": "size", "data": {"source": str(folder / "tokens"), "seq_len": 512}, "train": train}
    (folder / "size.yaml").write_text(yaml.safe_dump(recipe))
    cluster = {"name": "one", "scheduler": "local", "storage": str(folder / "runs"), "node": {"cpus": 1}}
    (folder / "one.yaml").write_text(yaml.safe_dump(cluster))


def bench(folder: Path, keys: list[str], steps: int) -> dict[str, float]:
    argv = [sys.executable, "-m", "launchyard", "bench", "size.yaml", "--cluster", "one.yaml", "--alone", "--json"]
    argv += ["--steps", str(steps), "--max-time", "3600", *keys]
    done = subprocess.run(argv, cwd=folder, stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout)["own"])


def line(case: str, own: dict[str, float]) -> str:
    planned, measured = own["planned_tokens_per_second"], own["undisturbed_tokens_per_second"]
    speed = (
        f"planned {planned:.1f}, measured {measured:.1f} tokens/s" if planned else f"measured {measured:.1f} tokens/s"
    )
    error = f" ({planned / measured - 1:+.1%})" if planned else ""
    tensors = own["tensor_bytes"] / 1e6
    off = own["planned_bytes"] / own["tensor_bytes"] - 1
    memory = f"planned {own['planned_bytes'] / 1e6:.0f} MB, measured {tensors:.0f} MB ({off:+.2%})"
    return f"{case:26} {speed}{error}; {memory}; process {own['peak_bytes'] / 1e6:.0f} MB"


if __name__ == "__main__":
    main()
