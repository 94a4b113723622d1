"""Weights of ours in the layout of a file to be written: the shapes and types of all tensors first, then one at a time.

Serves every format whose layout is a list of rules. Holds one tensor of theirs and those of ours that it is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from launchyard.model.config import ModelConfig
from launchyard.model.layout import TensorShape, parameter_shapes, stays_fp32
from launchyard.model.weights.load import Weights
from launchyard.model.zoo.rules import Overlap, Rule, overlaps, their_shapes
from launchyard.model.zoo.views import View


class TheirTensors:
    """The tensors that `rules` make of weights, by the keys of the rules, in the order of our parameters.

    dtype: element type of all but those that stay fp32; by default each has that of ours. ValueError if a parameter is
    missing, unknown or of another shape.
    """

    def __init__(
        self, weights: Weights | Mapping[str, Tensor], config: ModelConfig, rules: tuple[Rule, ...], *,
        dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        self._weights = _InMemory(weights) if isinstance(weights, Mapping) else weights
        self._our_shapes = parameter_shapes(config)
        _check_names(list(self._weights.keys()), self._our_shapes, tied=config.tie_embeddings)
        self._overlaps: dict[str, list[Overlap]] = {}
        self._users: dict[str, set[str]] = {}  # ours -> those of theirs that are still to be made of it
        for overlap in overlaps(rules, config):
            self._overlaps.setdefault(overlap.theirs, []).append(overlap)
            self._users.setdefault(overlap.ours, set()).add(overlap.theirs)
        shapes = their_shapes(rules, config)
        self.shapes: dict[str, TensorShape] = {key: shapes[key] for key in self._overlaps}
        self._dtypes = {key: self._dtype_of(of_key, dtype) for key, of_key in self._overlaps.items()}
        self._held: dict[str, Tensor] = {}

    def dtype(self, key: str) -> torch.dtype:
        """Of what `get` returns. Reads no tensor."""
        return self._dtypes[key]

    def get(self, key: str) -> Tensor:
        """A whole tensor on the CPU, once. What of ours is of no further use is let go.

        ValueError if a number is too large for float16.
        """
        made = made_of(self._overlaps[key], self.shapes[key], self._dtypes[key], self._ours)
        if made.dtype == torch.float16 and made.isinf().any():
            raise ValueError(f"{key} has numbers beyond 65,504, the largest of float16; use bfloat16 or float32")
        for ours in {overlap.ours for overlap in self._overlaps[key]}:
            self._users[ours].discard(key)
            if not self._users[ours]:
                del self._held[ours]
        return made

    def _ours(self, name: str) -> Tensor:
        if name not in self._held:
            found = self._weights.get(name).detach()
            if tuple(found.shape) != self._our_shapes[name]:
                expected = list(self._our_shapes[name])
                raise ValueError(f"{name} has shape {list(found.shape)}; the config makes it {expected}")
            assert found.dtype == self._weights.dtype(name), f"{name} is {found.dtype}, not as it was said to be"
            self._held[name] = found.to("cpu").contiguous()
        return self._held[name]

    def _dtype_of(self, parts: list[Overlap], dtype: torch.dtype | None) -> torch.dtype:
        if any(stays_fp32(overlap.ours) for overlap in parts):
            return torch.float32
        if dtype is not None:
            return dtype
        found = self._weights.dtype(parts[0].ours)
        for overlap in parts[1:]:  # one that holds them all
            found = torch.promote_types(found, self._weights.dtype(overlap.ours))
        return found


class _InMemory:
    """Tensors that are there already."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def keys(self) -> list[str]:
        return list(self._tensors)

    def dtype(self, key: str) -> torch.dtype:
        return self._tensors[key].dtype

    def get(self, key: str) -> Tensor:
        return self._tensors[key]


def _check_names(found: list[str], shapes: Mapping[str, TensorShape], *, tied: bool) -> None:
    """ValueError if a parameter is missing or unknown; a tied head may be named, it is the table."""
    for name in found:
        if name not in shapes and not (tied and name == "lm_head.weight"):
            raise ValueError(f"{name} is no parameter of this model")
    if missing := shapes.keys() - set(found):
        raise ValueError(f"{len(missing)} parameters are missing, among them {', '.join(sorted(missing)[:5])}")


def made_of(
    overlaps: Sequence[Overlap], shape: TensorShape, dtype: torch.dtype, get: Callable[[str], Tensor]
) -> Tensor:
    """One of theirs out of ours, contiguous; the inverse of to_ours.

    get: gives one of our tensors whole and contiguous.
    """
    made: Tensor | None = None
    for overlap in overlaps:
        part = _part(get(overlap.ours), overlap.ours_view)
        part = part if not overlap.plus else part.to(dtype) - overlap.plus
        if overlap.theirs_view.is_whole(shape):
            return part.reshape(shape).to(dtype).contiguous()
        made = torch.empty(shape, dtype=dtype) if made is None else made
        _part(made, overlap.theirs_view).copy_(part)
    assert made is not None
    return made


def _part(tensor: Tensor, view: View) -> Tensor:
    return tensor.as_strided(view.shape, view.strides, tensor.storage_offset() + view.offset)
