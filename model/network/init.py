"""First weights as a pure function of (config, name, seed): any rank gets the same numbers for the same rows.

Knows no module and no device. Numbers come from Philox, whose key is a hash, rather than from torch's generators, whose
normals differ in the last bits with the instruction set of the CPU.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy
import torch
from torch import Tensor

from launchyard.model.config import ModelConfig
from launchyard.model.layout import is_norm, is_vector, parameter_shapes

STD = 0.02
BLOCK_ELEMENTS = 1 << 18


def initial_rows(
    config: ModelConfig, key: str, shape: tuple[int, ...], *, seed: int, start: int = 0, stop: int | None = None
) -> Tensor:
    """Rows [start, stop) of the first value of parameter `key` with whole `shape`: fp32, on the CPU.

    Matrices are normal with deviation 0.02; those that write to the residual stream (o_proj, down_proj) have it divided
    by sqrt(2 n_layers), so that the stream's variance does not grow with depth (GPT-2, Radford et al. 2019, section
    2.3; Megatron-LM and GPT-NeoX do the same). Norms multiply by one at first;
    biases and sinks are zero. ValueError for an unknown key.
    """
    if parameter_shapes(config).get(key) != tuple(shape):
        raise ValueError(f"{key} with shape {tuple(shape)} is no parameter of this {config.family} model")
    stop = shape[0] if stop is None else stop
    rows = (max(0, stop - start), *shape[1:])
    if is_vector(key):
        return torch.ones(rows) if is_norm(key) and config.norm_weight == "plain" else torch.zeros(rows)
    return _rows(key, shape, seed=seed, start=start, stop=stop, draw=_normal).mul_(deviation(config, key))


def adapter_rows(key: str, shape: tuple[int, ...], *, seed: int, start: int = 0, stop: int | None = None) -> Tensor:
    """Rows [start, stop) of the first value of an adapter's parameter: fp32, on the CPU, so that it changes nothing.

    A of a projection is uniform within 1/sqrt(in), and B of a table normal, as in Hu et al. 2021 and PEFT; the other
    of the two is zero. A prompt is normal, as in Zhang et al. 2023, its gate zero; scales are one, biases
    and what is added to rows of tokens zero.
    """
    stop = shape[0] if stop is None else stop
    of_table = key.startswith("embed.")
    if key.endswith(".prompt"):
        return _rows(key, shape, seed=seed, start=start, stop=stop, draw=_normal)
    if key.endswith(".tokens"):
        return torch.zeros(max(0, stop - start), *shape[1:])
    if len(shape) == 1:
        return torch.full((max(0, stop - start),), 1.0 if key.endswith("scale") else 0.0)
    if key.endswith("lora_a" if of_table else "lora_b"):
        return torch.zeros(max(0, stop - start), *shape[1:])
    if of_table:
        return _rows(key, shape, seed=seed, start=start, stop=stop, draw=_normal)
    return _rows(key, shape, seed=seed, start=start, stop=stop, draw=_uniform).div_(math.sqrt(shape[1]))


def deviation(config: ModelConfig, key: str) -> float:
    """Standard deviation of a matrix's first value."""
    writes_residual = key.endswith(("o_proj.weight", "down_proj.weight"))
    return STD / math.sqrt(2 * config.n_layers) if writes_residual else STD


Floats = numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.float32]]
Draw = Callable[[numpy.random.Generator, tuple[int, int]], Floats]


def _normal(generator: numpy.random.Generator, shape: tuple[int, int]) -> Floats:
    return generator.standard_normal(shape, dtype=numpy.float32)


def _uniform(generator: numpy.random.Generator, shape: tuple[int, int]) -> Floats:
    """In [-1, 1)."""
    return generator.random(shape, dtype=numpy.float32) * 2 - 1


def _rows(key: str, shape: tuple[int, ...], *, seed: int, start: int, stop: int, draw: Draw) -> Tensor:
    """Random rows; each block of them has its own generator, so a cut changes nothing."""
    columns = math.prod(shape[1:])
    height = max(1, BLOCK_ELEMENTS // columns)
    result = numpy.empty((max(0, stop - start), columns), dtype=numpy.float32)
    for block in range(start // height, -(-stop // height)):
        first = block * height
        last = min((block + 1) * height, shape[0])
        values = draw(_generator(seed, key, block), (last - first, columns))
        low = max(first, start)
        high = min(last, stop)
        result[low - start : high - start] = values[low - first : high - first]
    return torch.from_numpy(result).view(-1, *shape[1:])


def _generator(seed: int, key: str, block: int) -> numpy.random.Generator:
    digest = hashlib.blake2b(f"{seed}/{key}/{block}".encode(), digest_size=16).digest()
    return numpy.random.Generator(numpy.random.Philox(key=int.from_bytes(digest, "little")))
