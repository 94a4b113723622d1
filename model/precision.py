"""The precisions of training: their names, those that other tools give them, and the types of numbers behind each.

The one table of them: recipes, plans, memory and training read it. Light: types are torch's names, as words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["fp32", "bf16", "bf16-true", "fp16-mixed", "fp64", "fp8"]
NUMBER_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class NumberTypes:
    """stored: weights that train, their gradients between two micro batches, and checkpoints. computed: the products of
    forward and backward. kept: moments of an optimizer, and the sum of gradients over ranks.
    """

    stored: str
    computed: str
    kept: str = "float32"
    scales_loss: bool = False  # the smallest gradients would be zero else


PRECISIONS: dict[Precision, NumberTypes] = {
    "fp32": NumberTypes("float32", "float32"),
    "bf16": NumberTypes("float32", "bfloat16"),
    "bf16-true": NumberTypes("bfloat16", "bfloat16"),
    "fp16-mixed": NumberTypes("float32", "float16", scales_loss=True),
    "fp64": NumberTypes("float64", "float64", kept="float64"),
    "fp8": NumberTypes("float32", "bfloat16"),  # and matrices of blocks in float8, one scale a tensor, for each product
}
# Spellings of Lightning and LitGPT. A number alone is what they take it for.
SPELLINGS: dict[str, Precision] = {
    "32": "fp32", "32-true": "fp32", "bf16-mixed": "bf16", "16": "fp16-mixed", "16-mixed": "fp16-mixed",
    "fp16": "fp16-mixed", "64": "fp64", "64-true": "fp64",
}  # fmt: skip
WITHOUT = {
    "16-true": "weights in fp16 lose every update below a thousandth of them; use bf16-true, or fp16-mixed",
    "transformer-engine": "fp8 is computed by torchao here; use fp8",
}


def canonical(given: object) -> object:
    """Our name of a precision, where `given` is an alias. ValueError for one that is left out, with the reason."""
    name = str(given)
    if name in WITHOUT:
        raise ValueError(f"{name}: {WITHOUT[name]}")
    return SPELLINGS.get(name, given)
