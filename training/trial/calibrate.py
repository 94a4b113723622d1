"""`python -m launchyard.training.trial.calibrate FILE MACHINE`: measures pieces of steps for model/speed.py.

They are this product's own blocks, loss and update, on the threads that it is given. One thread is timed by its CPU
seconds, which other work on the machine hardly changes; more by the clock. Numbers are fp32.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from datetime import date

import torch
from torch import Tensor

from launchyard.model.config import ModelConfig
from launchyard.model.network.transformer import Transformer
from launchyard.model.speed import (
    BLOCK_LENGTH,
    AttentionRate,
    BlockRate,
    Calibration,
    HeadTime,
    block_attention,
    block_products,
)
from launchyard.model.zoo import preset
from launchyard.storage import files
from launchyard.training.loss import linear_cross_entropy
from launchyard.training.optim.optimizers import make_optimizer
from launchyard.training.sections.optimizer import OptimizerConfig
from launchyard.training.step import reduce_and_clip

WIDTHS = (128, 256, 512, 768)
LENGTHS = (256, 512, 2048)
SEQUENCES = 2
HEAD_WIDTHS = (128, 512)
HEAD_ROWS = 50304
HEAD_TOKENS = (128, 512)  # of a micro-batch: what its table takes once is told apart from what each token takes
SMALL = 0.02  # spread of weights; with larger ones probabilities are too small for the fast way of a CPU
PARAMETERS = 8 << 20
LARGE = 2048  # sides of the product whose speed counts as the machine's
ROUNDS = 2  # the fastest counts: other work only slows them down


def calibrate(machine: str) -> Calibration:
    torch.manual_seed(0)
    attention = tuple(_attention(length) for length in LENGTHS)
    rate = next(piece.rate for piece in attention if piece.length == BLOCK_LENGTH)
    heads = [(width, *_head(width)) for width in HEAD_WIDTHS]
    return Calibration(
        machine=machine,
        date=date.today().isoformat(),
        threads=torch.get_num_threads(),
        matmul_flops=_matmul(),
        blocks=tuple(_blocks(rate)),
        attention=attention,
        heads=tuple(HeadTime(width=width, seconds=seconds) for width, seconds, _ in heads),
        table_seconds=heads[-1][-1],
        update_seconds=_update(),
    )


def _blocks(attention_rate: float) -> Iterator[BlockRate]:
    for name in ("pythia-70m", "smollm2-135m"):
        for width in WIDTHS:
            config = _sized(name, width)
            forward, whole = _block_seconds(config)
            products = max(whole / 2, whole - block_attention(config) * SEQUENCES * BLOCK_LENGTH / attention_rate)
            done = block_products(config) * SEQUENCES * BLOCK_LENGTH
            yield BlockRate(width=width, gated=config.gated_mlp, rate=done / products, forward=forward / whole)


def _sized(name: str, width: int) -> ModelConfig:
    """One block of a preset's kind, in the proportions that are usual."""
    head_dim = 32 if width <= 128 else 64
    base = preset(name)
    sizes = {
        "dim": width, "n_layers": 1, "n_heads": width // head_dim, "n_kv_heads": width // head_dim,
        "head_dim": head_dim, "ffn_dim": 8 * width // 3 // 64 * 64 if base.gated_mlp else 4 * width, "vocab_size": 64,
        "padded_vocab_size": 64,
    }  # fmt: skip
    return ModelConfig.model_validate({**base.model_dump(), **sizes})


def _block_seconds(config: ModelConfig) -> tuple[float, float]:
    """Of the forward, and of forward and backward."""
    model = Transformer(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=SMALL)
    told = model.places(BLOCK_LENGTH)[0]
    x = torch.randn(SEQUENCES, BLOCK_LENGTH, config.dim, requires_grad=True)
    ahead = torch.randn(SEQUENCES, BLOCK_LENGTH, config.dim)

    def forward() -> Tensor:
        return model.blocks[0](x, told.turn, told.mask, told.far)

    return _fastest(forward), _fastest(lambda: forward().backward(ahead))


def _attention(length: int) -> AttentionRate:
    heads, size = 8, 64
    sequences = max(1, 2048 // length)
    q, k, v = (torch.randn(sequences, heads, length, size, requires_grad=True) for _ in range(3))
    ahead = torch.randn(sequences, heads, length, size)

    def run() -> None:
        torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).backward(ahead)

    flops = 3 * 4 * sequences * heads * size * length**2
    return AttentionRate(length=length, rate=flops / _fastest(run))


def _head(width: int) -> tuple[float, float]:
    """Seconds of a token for each row, and of a micro-batch for each element of the table."""
    weight = (torch.randn(HEAD_ROWS, width) * SMALL).requires_grad_()
    few, many = (_loss_seconds(weight, n) for n in HEAD_TOKENS)
    token = max(0.0, (many - few) / (HEAD_TOKENS[1] - HEAD_TOKENS[0]))
    return token / HEAD_ROWS, max(0.0, few - token * HEAD_TOKENS[0]) / weight.numel()


def _loss_seconds(weight: Tensor, n_tokens: int) -> float:
    hidden = torch.randn(n_tokens, weight.shape[1], requires_grad=True)
    labels = torch.randint(HEAD_ROWS, (n_tokens,))

    def run() -> None:
        weight.grad = None
        linear_cross_entropy(hidden, weight, labels, scale=1 / n_tokens).backward()

    return _fastest(run)


def _update() -> float:
    """Of a parameter, its gradient made beforehand."""
    model = torch.nn.ParameterDict({f"w{n}": torch.randn(PARAMETERS // 8) for n in range(8)})
    optimizer = make_optimizer(model, OptimizerConfig())
    values = torch.zeros(1)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    number = 0

    def run() -> None:
        nonlocal number
        number += 1
        reduce_and_clip(model, values, max_grad_norm=1.0)
        optimizer.step(number, 1e-4)

    return _fastest(run) / PARAMETERS


def _matmul() -> float:
    a, b = (torch.randn(LARGE, LARGE) for _ in range(2))
    return 2 * LARGE**3 / _fastest(lambda: a @ b)


def _fastest(run: Callable[[], object]) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    run()
    found = []
    for _ in range(ROUNDS):
        began = clock()
        run()
        found.append(clock() - began)
    return min(found)


def main(argv: list[str]) -> int:
    path, machine = argv[1:]
    files.write(path, calibrate(machine).model_dump_json(indent=1).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
