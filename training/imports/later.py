"""What a worker imports at a resume and at its first save. Slow: for workers that are made ready in advance."""

import torch.distributed.checkpoint

from launchyard.training.checkpoint import checkpointer, dcp

__all__ = ["checkpointer", "dcp", "torch"]
