"""The estimate of training memory beside the peak of a process: two families in three sizes, and experts.

    python benchmarks/memory.py [--only NAME] [--steps 2]

Each trains in a process of its own, in fp32 on one CPU thread. The peak is that of the resident set (ru_maxrss) above
what it was after the imports and the threads' first product; so it holds scratch of kernels and slack of malloc too,
which the estimate leaves out (malloc is told to keep none). tests/model/test_memory.py counts live tensors instead.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys

from launchyard.model.config import ModelConfig, MoE
from launchyard.model.memory import training_memory
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


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def train(name: str, *, checkpointing: bool, steps: int) -> int:
    """Peak bytes of this process above those before the model was made."""
    import torch

    from launchyard.model.network.transformer import Transformer
    from launchyard.training.optim.optimizers import make_optimizer
    from launchyard.training.parallel import checkpoint_activations
    from launchyard.training.recipe import OptimizerConfig
    from launchyard.training.step import train_step

    torch.set_num_threads(1)
    (torch.randn(64, 64, requires_grad=True) @ torch.randn(64, 64)).sum().backward()
    config = CASES[name]
    before = _resident()
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    if checkpointing:
        checkpoint_activations(model.blocks)
    optimizer = make_optimizer(model, OptimizerConfig())
    for number in range(1, steps + 1):
        tokens = torch.randint(config.vocab_size, (2, MICRO_BATCH_SIZE, SEQ_LEN))
        train_step(
            model,
            optimizer,
            [(tokens[0], tokens[1])],
            n_valid=tokens[0].numel(),
            number=number,
            lr=1e-4,
            max_grad_norm=1.0,
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--child", metavar="JSON", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(train(**json.loads(given.child), steps=given.steps))
        return
    for name in [given.only] if given.only else CASES:
        for checkpointing in (False, True):
            child = json.dumps({"name": name, "checkpointing": checkpointing})
            words = [sys.executable, __file__, "--steps", str(given.steps), "--child", child]
            done = subprocess.run(words, check=True, capture_output=True, text=True, env={**os.environ, **UNPOOLED})
            peak = int(done.stdout)
            estimate = training_memory(
                CASES[name],
                micro_batch_size=MICRO_BATCH_SIZE,
                seq_len=SEQ_LEN,
                shards=1,
                precision="fp32",
                activation_checkpointing=checkpointing,
                device="cpu",
            )["total"]
            how = "checkpointed" if checkpointing else "plain"
            ratio = estimate / peak
            print(
                f"{name:30} {how:12} peak {peak / 1e6:7.0f} MB  estimate {estimate / 1e6:7.0f} MB  {ratio:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
