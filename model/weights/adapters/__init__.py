"""Adapters in the folders of PEFT: read over a base as a model, and written of a run."""
