"""adapter_config.json of a PEFT folder: what it says of the updates, and what is refused by name. Light."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from launchyard.storage.damage import JsonObject
from launchyard.storage.files import exists, read_json

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
        "trainable_token_indices",
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
    trained_tokens: Mapping[str, tuple[int, ...]]  # by name of a module; "" is the table

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

    def tokens(self, module: str, *, is_table: bool) -> tuple[int, ...]:
        """Ids of the rows of a table or head that are replaced, in the order of its tensor in the file."""
        named = [ids for name, ids in self.trained_tokens.items() if name and _is_named(module, name)]
        return named[0] if named else self.trained_tokens.get("", ()) if is_table else ()


def is_peft(folder: str) -> bool:
    return exists(f"{folder}/{ADAPTER_CONFIG}")


def read_peft_config(folder: str) -> PeftConfig:
    """ValueError names a key that is missing, or whose value is none that this program can honour."""
    path = f"{folder}/{ADAPTER_CONFIG}"
    said = _as_lora(path, read_json(path))
    _check(path, said)
    return PeftConfig(
        folder=folder,
        base=said.get("base_model_name_or_path"),
        r=int(_number(path, "r", said["r"])),
        lora_alpha=_number(path, "lora_alpha", said["lora_alpha"]),
        use_rslora=bool(said.get("use_rslora")),
        use_dora=bool(said.get("use_dora")),
        rank_pattern={name: int(rank) for name, rank in _numbers(path, said, "rank_pattern").items()},
        alpha_pattern=_numbers(path, said, "alpha_pattern"),
        target_modules=_names(path, said, "target_modules"),
        exclude_modules=_names(path, said, "exclude_modules"),
        layers_to_transform=_layers(path, said),
        layers_pattern=_listed(path, said, "layers_pattern"),
        modules_to_save=_listed(path, said, "modules_to_save"),
        ensure_weight_tying=bool(said.get("ensure_weight_tying")),
        trained_tokens=_tokens(path, said),
    )


def _as_lora(path: str, said: JsonObject) -> JsonObject:
    """Tokens that train without any update, as tokens beside none."""
    if said.get("peft_type") != "TRAINABLE_TOKENS":
        return said
    ids = said.get("token_indices")
    modules = _listed(path, said, "target_modules")
    tokens = dict.fromkeys(modules, ids) if modules else ids
    kept = {key: said[key] for key in said.keys() - {"token_indices", "init_weights"}}
    update = {"r": 1, "lora_alpha": 1, "target_modules": []}
    return {**kept, **update, "peft_type": "LORA", "trainable_token_indices": tokens}


def _check(path: str, said: Mapping[str, object]) -> None:
    if said.get("peft_type") != "LORA":
        raise ValueError(
            f"{path}: peft_type is {said.get('peft_type')!r}; LORA is read, with DoRA and rsLoRA, and TRAINABLE_TOKENS"
        )
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


def _number(path: str, key: str, given: object) -> float:
    if not isinstance(given, (int, float)):
        raise ValueError(_other_type(path, key, given, "a number"))
    return given


def _numbers(path: str, said: Mapping[str, object], key: str) -> dict[str, float]:
    given = said.get(key) or {}
    if not isinstance(given, dict):
        raise ValueError(_other_type(path, key, given, "an object of names and numbers"))
    return {str(name): _number(path, f"{key}, {name}", number) for name, number in given.items()}


def _other_type(path: str, key: str, given: object, wanted: str) -> str:
    return f"{path}: {key} is {json.dumps(given)[:60]}, and must be {wanted}"


def _names(path: str, said: Mapping[str, object], key: str) -> str | tuple[str, ...]:
    """A regular expression, or names of modules."""
    given = said.get(key)
    return given if isinstance(given, str) else _listed(path, said, key)


def _listed(path: str, said: Mapping[str, object], key: str) -> tuple[str, ...]:
    given = said.get(key)
    if given is None or given == "":
        return ()
    if isinstance(given, str):
        return (given,)
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise ValueError(_other_type(path, key, given, "a name or a list of names"))
    return tuple(given)


def _layers(path: str, said: Mapping[str, object]) -> tuple[int, ...] | None:
    given = said.get("layers_to_transform")
    return None if given is None else _whole_numbers(path, "layers_to_transform", given)


def _tokens(path: str, said: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
    key = "trainable_token_indices"
    given = said.get(key) or {}
    of_modules = given if isinstance(given, dict) else {"": given}
    return {str(name): _whole_numbers(path, key, ids) for name, ids in of_modules.items()}


def _whole_numbers(path: str, key: str, given: object) -> tuple[int, ...]:
    numbers = [given] if isinstance(given, int) else given
    if not isinstance(numbers, list) or not all(isinstance(number, int) for number in numbers):
        raise ValueError(_other_type(path, key, given, "a number or a list of numbers"))
    return tuple(numbers)


def _is_named(module: str, name: str) -> bool:
    return _matches(module, (name,)) or _matches(module, name)


def _matches(module: str, wanted: str | tuple[str, ...]) -> bool:
    if isinstance(wanted, str):
        return re.fullmatch(wanted, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in wanted)


def _ends(module: str, pattern: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", module) is not None
