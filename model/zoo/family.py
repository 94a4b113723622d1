"""What the zoo knows of one kind of model of Hugging Face: a `model_type`. Light: plain data and pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from launchyard.model.config import ModelConfig
from launchyard.model.zoo.gguf import Gguf
from launchyard.model.zoo.hf_config import HFKeys, Written
from launchyard.model.zoo.rules import Rule


@dataclass(frozen=True)
class Family:
    """`read` and `write` are each other's inverse, but for knobs that the format has no place for.

    read: ModelConfig of a config.json, with `defaults` in it for keys that it lacks; ValueError names a key that is
    missing or has a value that is not supported. write: the keys of config.json but for model_type and architectures.
    """

    model_type: str
    hf_class: str  # transformers' name of it
    rules: tuple[Rule, ...]
    read: Callable[[HFKeys], ModelConfig]
    write: Callable[[ModelConfig], Written]
    defaults: HFKeys = field(default_factory=dict)  # of transformers' class, where they matter
    presets: Mapping[str, ModelConfig] = field(default_factory=dict)  # small to large
    gguf: Gguf | None = None  # its form in llama.cpp's files, if it has one
    hf_code: str | None = None  # file of model/weights/hf_code that goes into its folders
    inside: tuple[str, ...] = ()  # model_types of models of images and text that it is the language model of
