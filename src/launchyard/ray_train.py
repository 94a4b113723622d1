"""For a `TorchTrainer` of Ray Train: `TorchTrainer(launchyard.ray_train.train_loop, train_loop_config={…})`."""

from launchyard.launcher.python.ray_train import train_loop

__all__ = ["train_loop"]
