"""All that a worker imports before its first step, for a process that is forked into workers. Runs nothing."""

import prometheus_client.exposition
import torch
import torch.distributed

from launchyard.host import folders
from launchyard.model.text import tokenizer
from launchyard.training import artifacts, build, compose
from launchyard.training.data import open_reader
from launchyard.training.loop import train
from launchyard.training.telemetry import recorder, telemetry
from launchyard.training.telemetry.trackers import open as trackers
from launchyard.training.validation import samples

__all__ = ["artifacts", "build", "compose", "folders", "open_reader", "prometheus_client"]
__all__ += ["recorder", "samples", "telemetry", "tokenizer", "torch", "trackers", "train"]
