"""Dropout of a whole model while it trains: of what enters the first block, of attention weights, and of what attention
and MLP add. Knows where it goes; what is left out, and when, is noise.py's.
"""

from __future__ import annotations

from torch import Tensor, nn

from launchyard.model.adapt.noise import Moment, Noise


def add_dropout(model: nn.Module, p: float, moment: Moment) -> None:
    """Of every block, before blocks are wrapped, compiled or sharded. Nothing is added for a `p` of 0."""
    if not p:
        return
    blocks = model.get_submodule("blocks")
    for number, block in enumerate(blocks.children()):
        name = f"blocks.{number}"
        block.attention.scores.noise = Noise(f"{name}.attention.weights", p, moment)
        for part in ("attention", "mlp"):
            block.get_submodule(part).register_forward_hook(_OfOutput(Noise(f"{name}.{part}", p, moment)))
    first = next(blocks.children())
    first.register_forward_pre_hook(_OfInput(Noise("embed", p, moment)))


class _OfOutput:
    """A hook behind a module."""

    def __init__(self, noise: Noise) -> None:
        self._noise = noise

    def __call__(self, module: nn.Module, args: tuple[object, ...], out: Tensor) -> Tensor:
        return self._noise.dropped(out)


class _OfInput:
    """A hook before a module, of its first argument."""

    def __init__(self, noise: Noise) -> None:
        self._noise = noise

    def __call__(self, module: nn.Module, args: tuple[object, ...]) -> tuple[object, ...]:
        assert isinstance(args[0], Tensor)
        return self._noise.dropped(args[0]), *args[1:]
