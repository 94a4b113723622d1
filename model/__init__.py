"""Tensors: transformer, families, weights in and out, generation. Knows nothing of training or launching.

`from model import load` gives a ready model from an HF directory, a checkpoint, an export or a run.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    # Lazy, so that the light files of this package can be imported without torch.
    if name == "load":
        from model.loading import load

        return load
    raise AttributeError(f"module 'model' has no attribute {name!r}")
