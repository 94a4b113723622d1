"""What a worker imports at a resume and at its first save. Slow: for workers that are made ready in advance."""

from launchyard.training.checkpoint import checkpointer, parts

__all__ = ["checkpointer", "parts"]
