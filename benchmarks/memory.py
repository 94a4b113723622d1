"""The estimate of training memory beside the peak of a process: two families in three sizes, experts and adapters.

    python benchmarks/memory.py [--only NAME]

Each trains two steps in a process of its own, in fp32 on one CPU thread. `live` is the most bytes of storages of
tensors that were alive at once, what the estimate is of; `process` is the peak of the resident set above what a small
model left behind, with scratch of kernels and what malloc keeps.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

from launchyard.model.adapter import Adapter
from launchyard.model.config import ModelConfig, MoE
from launchyard.model.memory import Savings, training_memory
from launchyard.model.zoo import preset

SEQ_LEN = 512
MICRO_BATCH_SIZE = 4
# What is freed goes back to the kernel, so that the peak is of bytes in use and not of the heap's holes.
UNPOOLED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def _smaller(name: str, **knobs: object) -> ModelConfig:
    return ModelConfig.model_validate({**preset(name).model_dump(), **knobs})


CASES = {
    "pythia-14m": preset("pythia-14m"),
    "pythia-70m": preset("pythia-70m"),
    "pythia-160m": preset("pythia-160m"),
    "smollm2, 6 layers": _smaller("smollm2-135m", n_layers=6),
    "smollm2, 15 layers": _smaller("smollm2-135m", n_layers=15),
    "smollm2-135m": preset("smollm2-135m"),
    "qwen3, 4 layers of 16 experts": _smaller(
        "qwen3-30b-a3b", dim=512, n_layers=4, n_heads=8, n_kv_heads=2, head_dim=64, ffn_dim=1024, vocab_size=50277,
        padded_vocab_size=50304, moe=MoE(n_experts=16, top_k=2, ffn_dim=512, normalize=True),
    ),
}  # fmt: skip


ADAPTERS = {
    f"{name} {kind}": (name, Adapter.model_validate({"kind": kind}))
    for name in ("smollm2, 6 layers", "smollm2-135m")
    for kind in ("lora", "qlora")
}
WORKLOADS: dict[str, tuple[str, Adapter | None]] = {name: (name, None) for name in CASES} | ADAPTERS


def savings_of(checkpointing: bool) -> Savings:
    return Savings(activation_checkpointing="full" if checkpointing else "none")


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def train(name: str, *, checkpointing: bool) -> tuple[int, int]:
    """Peak bytes of live tensors, and of the process above those that a small model of the same kind left behind."""
    import torch

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.model.live_bytes import trained_peak

    torch.set_num_threads(1)
    case, adapter = WORKLOADS[name]
    config = CASES[case]
    warm = config.model_copy(update={"n_layers": 1, "vocab_size": 128, "padded_vocab_size": 128})
    savings = savings_of(checkpointing)
    trained_peak(warm, micro_batch_size=1, seq_len=8, savings=savings)
    before = _resident()
    live = trained_peak(
        config, micro_batch_size=MICRO_BATCH_SIZE, seq_len=SEQ_LEN, savings=savings, adapter=adapter
    )  # fmt: skip
    return live, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=WORKLOADS)
    parser.add_argument("--child", metavar="JSON", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(train(**json.loads(given.child))))
        return
    for name in [given.only] if given.only else WORKLOADS:
        for checkpointing in (False, True):
            child = json.dumps({"name": name, "checkpointing": checkpointing})
            words = [sys.executable, __file__, "--child", child]
            done = subprocess.run(words, check=True, capture_output=True, text=True, env={**os.environ, **UNPOOLED})
            live, resident = json.loads(done.stdout)
            estimate = training_memory(
                CASES[WORKLOADS[name][0]],
                adapter=WORKLOADS[name][1],
                micro_batch_size=MICRO_BATCH_SIZE,
                seq_len=SEQ_LEN,
                shards=1,
                precision="fp32",
                device="cpu",
                savings=savings_of(checkpointing),
            )["total"]
            how = "checkpointed" if checkpointing else "plain"
            sizes = f"estimate {estimate / 1e6:6.0f} MB  live {live / 1e6:6.0f} MB  process {resident / 1e6:6.0f} MB"
            print(f"{name:30} {how:12} {sizes}  {estimate / live:.3f}", flush=True)


if __name__ == "__main__":
    main()
