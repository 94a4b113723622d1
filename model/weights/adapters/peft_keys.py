"""The tensors of a PEFT folder by the module that they change. Light but for a .bin file, which torch opens."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from launchyard.model.config import ModelConfig
from launchyard.model.layout import TensorShape
from launchyard.model.weights.adapters.peft_config import PeftConfig, read_peft_config
from launchyard.model.weights.tie import table_keys
from launchyard.model.zoo import rules
from launchyard.model.zoo.rules import rule_keys
from launchyard.storage.files import exists, listdir

SAFETENSORS = "adapter_model.safetensors"
BIN = "adapter_model.bin"
PEFT_PREFIX = "base_model.model."
_PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.(?!weight$|bias$)[^.]+)?(?P<bias>\.bias)?(?:\.weight)?"
)

_TOKENS = re.compile(r"(?P<module>.+?)(?:\.token_adapter)?\.trainable_tokens_delta(?:\.[^.]+)?")


@dataclass
class PeftKeys:
    """module -> part (lora_A, lora_B …) -> key of the file; and tensors that replace one of the base, or some rows of
    a table or head, by its key."""

    updates: dict[str, dict[str, str]] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)


def shapes_in(folder: str) -> dict[str, TensorShape]:
    """The keys of an adapter's file, with their shapes. FileNotFoundError without one."""
    from launchyard.storage.safetensors import TensorFile

    if exists(f"{folder}/{SAFETENSORS}"):
        return {key: entry.shape for key, entry in TensorFile(f"{folder}/{SAFETENSORS}").entries.items()}
    if exists(f"{folder}/{BIN}"):
        from launchyard.model.weights.stored.pickled import open_pickle

        return {key: tuple(tensor.shape) for key, tensor in open_pickle(f"{folder}/{BIN}").items()}
    found = ", ".join(sorted(listdir(folder))[:6])
    raise FileNotFoundError(f"{folder}: neither {SAFETENSORS} nor {BIN} beside the adapter's config; there is {found}")


def peft_keys(base: ModelConfig, peft: PeftConfig, names: Iterable[str]) -> PeftKeys:
    """The keys of an adapter over a base, modules as the family's rules have them.

    Where the adapter keeps a tied head with its table, what is of the head is of the table. ValueError for a key that
    PEFT does not write for LoRA.
    """
    found = PeftKeys()
    stripped = {name: _stripped(name, peft.folder) for name in names if ".original_module." not in name}
    ruled = {theirs: ours for ours, theirs in rule_keys(rules(base), list(stripped.values())).items()}
    for name, key in stripped.items():
        match = _PART.fullmatch(ruled[key])
        tokens = _TOKENS.fullmatch(ruled[key])
        if tokens is not None:
            found.tokens[f"{tokens['module']}.weight"] = name
        elif match is None:
            whole = re.sub(r"\.(base_layer|modules_to_save(\.(?!weight$|bias$)[^.]+)?)(?=\.)", "", ruled[key])
            found.whole[whole] = name
        else:
            found.updates.setdefault(match["module"], {})[match["part"] + (match["bias"] or "")] = name
    if not stripped:
        raise ValueError(f"{peft.folder} holds no tensor")
    if base.tie_embeddings and peft.ensure_weight_tying:
        _join_head(found, *table_keys(base))
    if base.tie_embeddings and found.tokens:
        _, head = table_keys(base)
        if not peft.tokens(head.removesuffix(".weight"), is_table=False):
            found.tokens.pop(head, None)  # those of the table, once more
    return found


def untied_by(base: ModelConfig, peft: PeftConfig, keys: PeftKeys) -> bool:
    """Whether an adapter changes the table or the head of a tied base alone, so that they are two from then on."""
    if not base.tie_embeddings or peft.ensure_weight_tying:
        return False
    table, head = table_keys(base)
    changed = {*keys.whole, *(f"{module}.weight" for module in keys.updates)}
    return not changed.isdisjoint((table, head)) or head in keys.tokens  # rows of the table alone are of both


def adapted_config(base: ModelConfig, folder: str) -> ModelConfig:
    """The config of a base with an adapter in its weights. Reads no tensor of safetensors files."""
    peft = read_peft_config(folder)
    untied = untied_by(base, peft, peft_keys(base, peft, shapes_in(folder)))
    return base.model_copy(update={"tie_embeddings": base.tie_embeddings and not untied})


def _stripped(name: str, where: str) -> str:
    if not name.startswith(PEFT_PREFIX):
        raise ValueError(f"{where}: key {name} does not begin with {PEFT_PREFIX}, as PEFT writes it")
    return name.removeprefix(PEFT_PREFIX)


def _join_head(keys: PeftKeys, table: str, head: str) -> None:
    """The table has what the head has: both are one."""
    of_head = keys.updates.pop(head.removesuffix(".weight"), None)
    if of_head is not None:
        keys.updates.setdefault(table.removesuffix(".weight"), of_head)
    whole = keys.whole.pop(head, None)
    if whole is not None:
        keys.whole.setdefault(table, whole)
