"""What the layers of a model are told of where tokens stand: rotations, masks, distances. Knows no weights."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from launchyard.model.config import ModelConfig
from launchyard.model.network.documents import Documents
from launchyard.model.network.rope import is_long, tables


class Rotations:
    """Cosines and sines of a model, made once for as many positions as have been asked for."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._made: dict[bool, tuple[Tensor, Tensor]] = {}
        self._longest: int | None = None

    def upto(
        self, stop: int, device: torch.device, *, windowed: bool, longest: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Those of positions 0 … at least stop - 1, each (length, rope_dim / 2).

        longest: tokens that the sequence may come to; default: stop.
        """
        config = self._config
        longest = rotation_regime(config, longest or stop)
        if longest != self._longest:
            self._longest = longest
            self._made.clear()
        found = self._made.get(windowed)
        if found is None or len(found[0]) < stop or found[0].device != device:
            length = max(stop, min(config.max_seq_len, _grown(stop)))
            found = tables(config, length, device, windowed=windowed, longest=longest)
            self._made[windowed] = found
        return found

    def of_documents(self, documents: Documents, device: torch.device, *, windowed: bool) -> tuple[Tensor, Tensor]:
        """Those of each document by its own length, end to end: (N, rope_dim / 2) each."""
        found = [(n, *self.upto(n, device, windowed=windowed)) for n in documents.lengths]
        return torch.cat([cos[:n] for n, cos, _ in found]), torch.cat([sin[:n] for n, _, sin in found])


def rotation_regime(config: ModelConfig, length: int) -> int | None:
    """The length that frequencies depend on in a sequence that may come to `length` tokens; None: on none.

    Keys of one regime do not fit queries of another.
    """
    scaling = config.rope_scaling
    if scaling is None or scaling.kind not in ("dynamic", "longrope"):
        return None
    if not is_long(config, length):
        return 1
    return length if scaling.kind == "dynamic" else config.max_seq_len


def causal_mask(config: ModelConfig, sees: str, queries: Tensor, keys: Tensor, present: Tensor | None = None) -> Tensor:
    """What each query may see: bool, or with ALiBi numbers to add; (…, T, S) and with ALiBi (…, H, T, S).

    queries (…, T) and keys (…, S): positions. present (…, S): keys that are there at all.
    """
    distance = queries[..., :, None] - keys[..., None, :]
    seen = distance >= 0
    if sees == "window":
        assert config.window is not None
        seen &= distance < config.window
    elif sees == "chunk":
        assert config.window is not None
        seen &= (queries // config.window)[..., :, None] == (keys // config.window)[..., None, :]
    if present is not None:
        seen &= present[..., None, :]
    if config.positions != "alibi":
        return seen
    slopes = alibi_slopes(*config.alibi_heads, queries.device)[:, None, None]
    if config.alibi_bf16:  # from the first position instead of from the query: a softmax sees no difference
        bias = (slopes.bfloat16() * keys[..., None, None, :].bfloat16()).float()
    else:
        bias = -slopes * distance[..., None, :, :]
    bias = bias if config.alibi_scale is None else bias * config.alibi_scale
    return bias.masked_fill(~seen[..., None, :, :], -torch.inf)


def needs_mask(config: ModelConfig, sees: str, length: int) -> bool:
    """False for `length` tokens with nothing before them whose attention is causal and nothing else."""
    if config.positions == "alibi":
        return True
    return sees != "full" and config.window is not None and length > config.window


@cache
def alibi_slopes(own: range, heads: int, device: torch.device) -> Tensor:
    """(H,) fp32: a geometric sequence, with every other one of the next longer for a number that is no power of two.

    Of these heads of all. Press et al. 2022, section 3. Kept, since a recorded step cannot copy them from the host.
    """
    power = 1 << (heads.bit_length() - 1)

    def slopes(count: int) -> list[float]:
        return [2.0 ** (-8.0 * (n + 1) / count) for n in range(count)]

    found = slopes(power) + slopes(2 * power)[::2][: heads - power]
    with torch.inference_mode(False), torch.no_grad():  # training may need them next
        return torch.tensor(found[own.start : own.stop], dtype=torch.float32, device="cpu").to(device)


def far_gain(config: ModelConfig, positions: Tensor) -> Tensor | None:
    """(T or B, T; 1, 1) fp32: what queries of layers without rotation grow by; None if by nothing."""
    if config.far_scale is None:
        return None
    steps = torch.floor((positions.float() + 1) / config.far_step)
    return (torch.log1p(steps) * config.far_scale + 1.0)[..., None, None]


def _grown(length: int) -> int:
    """The next power of two, so that generation does not make tables anew at each token."""
    return 1 << max(0, length - 1).bit_length()
