"""All that a worker imports before its first step, for a process that is forked into workers. Runs nothing."""

import torch
import torch.distributed

from launchyard.training import artifacts, build, compose
from launchyard.training.loop import train

__all__ = ["artifacts", "build", "compose", "torch", "train"]
