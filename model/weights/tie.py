"""Are the table and the head of a model one tensor? By the stored tensors, where config.json says so. Light."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

from launchyard.model.config import ModelConfig
from launchyard.model.weights.headers import bins_of, open_holding, stored_in
from launchyard.model.zoo import is_of_images, rules
from launchyard.model.zoo.hf_config import HFKeys
from launchyard.model.zoo.rules import Rename, rule_keys
from launchyard.model.zoo.text_part import text_keys
from launchyard.storage import files
from launchyard.storage.safetensors import TensorFile

if TYPE_CHECKING:
    from torch import Tensor

_PIECE_BYTES = 16 << 20
Stored = TypeVar("Stored")


def settled(config: ModelConfig, hf: HFKeys, folder: str) -> ModelConfig:
    """The config, untied if the folder's files hold a table and another head, as transformers 5 does it.

    Fine-tunes leave such folders, whose config.json still says that both are one.
    """
    if not config.tie_embeddings:
        return config
    stored = stored_in(folder) or _bins(folder)
    names = text_keys(stored) if is_of_images(hf) else {key: key for key in stored}
    found = {key: names[name] for key, name in rule_keys(rules(config), names).items()}
    both = [found[key] for key in table_keys(config) if key in found]
    if len(both) < 2 or _same_values(folder, stored, *both):
        return config
    return config.model_copy(update={"tie_embeddings": False})


def _bins(folder: str) -> dict[str, Tensor]:
    """The tensors of .bin files, mapped; torch is imported only for a folder that has some."""
    if not bins_of(folder):
        return {}
    from launchyard.model.weights.stored.pickled import open_bins

    return {key: tensor for key, (_, tensor) in open_bins(folder).items()}


def _same_values(folder: str, stored: Mapping[str, str | Tensor], table: str, head: str) -> bool:
    one = stored[table]
    other = stored[head]
    if isinstance(one, str) and isinstance(other, str):
        return same_tensor((open_holding(folder, one, table), table), (open_holding(folder, other, head), head))
    assert not isinstance(one, str) and not isinstance(other, str)
    return one.dtype == other.dtype and one.equal(other)


def with_table(config: ModelConfig, stored: dict[str, Stored]) -> dict[str, Stored]:
    """Their tensors by key, with the head as the table where that alone was saved, as some versions did it."""
    table, head = table_keys(config)
    if config.tie_embeddings and table not in stored and head in stored:
        return {table: stored[head], **stored}
    return stored


def table_keys(config: ModelConfig) -> tuple[str, str]:
    """The keys of the table and of the head in files of the config's family."""
    by_ours = {rule.ours: rule.theirs for rule in rules(config) if isinstance(rule, Rename)}
    return by_ours["embed.weight"], by_ours["lm_head.weight"]


def same_tensor(one: tuple[TensorFile, str], other: tuple[TensorFile, str]) -> bool:
    """Do both have the same type, shape and bytes? Reads no further than to the first piece that differs."""
    file, name = one
    other_file, other_name = other
    entry = file.entries[name]
    other_entry = other_file.entries[other_name]
    if (entry.dtype, entry.shape) != (other_entry.dtype, other_entry.shape):
        return False
    return all(
        files.read(file.path, entry.start + at, length) == files.read(other_file.path, other_entry.start + at, length)
        for at, length in _pieces(entry.length)
    )


def _pieces(n_bytes: int) -> list[tuple[int, int]]:
    """Start and length of each; the first is small, since tables that differ do so at once."""
    first = min(n_bytes, 64 << 10)
    return [
        (0, first),
        *((at, min(_PIECE_BYTES, n_bytes - at)) for at in range(first, n_bytes, _PIECE_BYTES)),
    ]
