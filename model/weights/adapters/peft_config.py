"""adapter_config.json of a PEFT folder: what it says of the updates, and what is refused by name. Light."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from launchyard.storage.files import exists, read

ADAPTER_CONFIG = "adapter_config.json"
# Of training alone, or of no effect on the tensors: a Conv1D's are known by the family's rules.
_WITHOUT_EFFECT = frozenset(
    [
        "auto_mapping",
        "eva_config",
        "fan_in_fan_out",
        "inference_mode",
        "lora_dropout",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
    ]
)
_HONOURED = frozenset(
    [
        "alpha_pattern",
        "base_model_name_or_path",
        "bias",
        "ensure_weight_tying",
        "exclude_modules",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "lora_bias",
        "modules_to_save",
        "r",
        "rank_pattern",
        "target_modules",
        "use_dora",
        "use_rslora",
    ]
)
_BASE_KEPT = (None, True, False, "gaussian", "eva", "orthogonal")  # first values that leave the base as it is


@dataclass(frozen=True)
class PeftConfig:
    """The keys that count, under PEFT's names."""

    folder: str
    base: str | None
    r: int
    lora_alpha: float
    use_rslora: bool
    use_dora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    target_modules: str | tuple[str, ...]
    exclude_modules: str | tuple[str, ...]
    layers_to_transform: tuple[int, ...] | None
    layers_pattern: tuple[str, ...]
    modules_to_save: tuple[str, ...]
    ensure_weight_tying: bool

    def rank(self, module: str) -> int:
        return next((rank for key, rank in self.rank_pattern.items() if _ends(module, key)), self.r)

    def scale(self, module: str) -> float:
        """Factor of B A of a module, by its path."""
        alpha = next((alpha for key, alpha in self.alpha_pattern.items() if _ends(module, key)), self.lora_alpha)
        rank = self.rank(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def targets(self, module: str) -> bool:
        """Whether a module has an update. Not for all-linear, which depends on modules of transformers."""
        if self.exclude_modules and _matches(module, self.exclude_modules):
            return False
        if not _matches(module, self.target_modules):
            return False
        if isinstance(self.target_modules, str) or self.layers_to_transform is None:
            return True
        names = "|".join(map(re.escape, self.layers_pattern)) or r"[^.]+"
        found = re.search(rf"(?:^|\.)(?:{names})\.(\d+)\.", module)
        return found is not None and int(found[1]) in self.layers_to_transform


def is_peft(folder: str) -> bool:
    return exists(f"{folder}/{ADAPTER_CONFIG}")


def read_peft_config(folder: str) -> PeftConfig:
    """ValueError names a key that is missing, or whose value is none that this program can honour."""
    path = f"{folder}/{ADAPTER_CONFIG}"
    try:
        said = json.loads(read(path))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(said, dict):
        raise ValueError(f"{path} holds no JSON object")
    _check(path, said)
    return PeftConfig(
        folder=folder,
        base=said.get("base_model_name_or_path"),
        r=int(said["r"]),
        lora_alpha=float(said["lora_alpha"]),
        use_rslora=bool(said.get("use_rslora")),
        use_dora=bool(said.get("use_dora")),
        rank_pattern=said.get("rank_pattern") or {},
        alpha_pattern=said.get("alpha_pattern") or {},
        target_modules=_names(said["target_modules"]),
        exclude_modules=_names(said.get("exclude_modules") or ()),
        layers_to_transform=_layers(said.get("layers_to_transform")),
        layers_pattern=_listed(said.get("layers_pattern")),
        modules_to_save=_listed(said.get("modules_to_save")),
        ensure_weight_tying=bool(said.get("ensure_weight_tying")),
    )


def _check(path: str, said: Mapping[str, object]) -> None:
    if said.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type is {said.get('peft_type')!r}; LORA alone is read, DoRA and rsLoRA with it")
    if missing := {"r", "lora_alpha", "target_modules"} - {key for key, value in said.items() if value is not None}:
        raise ValueError(f"{path}: {', '.join(sorted(missing))} missing")
    refused = [key for key, value in said.items() if value and key not in _WITHOUT_EFFECT | _HONOURED]
    if refused:
        named = ", ".join(f"{key}: {json.dumps(said[key])[:60]}" for key in refused)
        raise ValueError(f"{path}: {named}: not supported; merge the adapter with peft, and take the merged model")
    first = said.get("init_lora_weights")
    if first not in _BASE_KEPT:
        raise ValueError(
            f"{path}: init_lora_weights {first!r} changes the base before training; save the adapter converted to "
            "plain LoRA (path_initial_model_for_weight_conversion of save_pretrained)"
        )


def _names(given: object) -> str | tuple[str, ...]:
    return given if isinstance(given, str) else _listed(given)


def _listed(given: object) -> tuple[str, ...]:
    if given is None:
        return ()
    return (given,) if isinstance(given, str) else tuple(str(name) for name in given)  # type: ignore[attr-defined]


def _layers(given: object) -> tuple[int, ...] | None:
    if given is None:
        return None
    return (given,) if isinstance(given, int) else tuple(int(layer) for layer in given)  # type: ignore[attr-defined]


def _matches(module: str, wanted: str | tuple[str, ...]) -> bool:
    if isinstance(wanted, str):
        return re.fullmatch(wanted, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in wanted)


def _ends(module: str, pattern: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", module) is not None
