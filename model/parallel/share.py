"""What of a model each of several ranks holds: its heads, its part of every MLP, and its rows of the vocabulary.

Projections into heads and MLPs are cut by rows, those out of them by columns, so that one sum over the ranks ends
each. Knows no tensor.
"""

from __future__ import annotations

from typing import NamedTuple

from launchyard.model.config import ModelConfig

_EXPERT_WIDTH = 8  # an expert's width is a multiple of it: see ModelConfig
_BY_HEADS = ("q_proj", "k_proj", "v_proj", "q_b_proj", "kv_b_proj")
_BY_WIDTH = ("gate_proj", "up_proj")
_SUMMED = ("o_proj", "down_proj")


class Cut(NamedTuple):
    """Places of one axis of a parameter."""

    axis: int
    places: range


class ShareConfig(ModelConfig):
    """What one rank computes, as the config of a narrower model."""

    rank: int
    n_ranks: int

    @property
    def alibi_heads(self) -> tuple[range, int]:
        first = self.rank * self.n_heads
        return range(first, first + self.n_heads), self.n_ranks * self.n_heads


def share_config(config: ModelConfig, rank: int, n_ranks: int) -> ShareConfig:
    """ValueError names what so many ranks cannot share, and how many can."""
    _check(config, n_ranks)
    knobs = dict(config)
    knobs.update(n_heads=config.n_heads // n_ranks, n_kv_heads=config.n_kv_heads // n_ranks)
    if _has_mlps(config):
        knobs["ffn_dim"] = config.ffn_dim // n_ranks
    if config.moe is not None:
        narrower = {key: getattr(config.moe, key) // n_ranks for key in ("ffn_dim", "shared_ffn_dim")}
        knobs["moe"] = config.moe.model_copy(update=narrower)
    return ShareConfig.model_construct(**knobs, rank=rank, n_ranks=n_ranks)


def shares_vocabulary(config: ModelConfig, n_ranks: int) -> bool:
    """False where the rows do not go into so many: then each rank has all."""
    return config.padded_vocab_size % n_ranks == 0


def is_of_first_rank(name: str) -> bool:
    """True for the bias of a sum: it is added once."""
    return name.endswith(tuple(f"{module}.bias" for module in _SUMMED))


def cut_of(config: ModelConfig, name: str, shape: tuple[int, ...], rank: int, n_ranks: int) -> Cut | None:
    """The part of a parameter of the whole model that a rank holds; None: all of it."""
    axis = _axis(config, name, n_ranks)
    if axis is None:
        return None
    size = shape[axis] // n_ranks
    return Cut(axis, range(rank * size, (rank + 1) * size))


def training_cut(config: ModelConfig, name: str, shape: tuple[int, ...], rank: int, n_ranks: int) -> Cut | None:
    """The part of a parameter that a rank trains; None: all of it."""
    if name.startswith(("embed.", "lm_head.")):
        return None
    return cut_of(config, name, shape, rank, n_ranks)


def check_shared_training(config: ModelConfig, n_ranks: int) -> None:
    """ValueError for a model that so many ranks cannot share, or none at all."""
    if config.moe is not None:
        raise ValueError("experts are not shared by ranks in training; use 1")
    if config.latent_attention is not None:
        raise ValueError("latent attention is not shared by ranks in training; use 1")
    if config.qk_norm == "width":
        raise ValueError("a qk_norm of the whole width is not shared by ranks in training; use 1")
    share_config(config, 0, n_ranks)


def _axis(config: ModelConfig, name: str, n_ranks: int) -> int | None:
    path, _, kind = name.rpartition(".")
    module = path.rpartition(".")[2]
    if module in ("embed", "lm_head"):
        return 0 if shares_vocabulary(config, n_ranks) else None
    of_experts = int(".experts." in name)  # whose first axis numbers them
    if module in _SUMMED:
        return of_experts + 1 if kind == "weight" else None
    if module in _BY_HEADS or kind == "sinks":
        return 0
    if module in _BY_WIDTH:
        return of_experts
    has_heads = module in ("q_norm", "k_norm") and config.qk_norm in ("each", "width")
    return 0 if has_heads else None


def _check(config: ModelConfig, n_ranks: int) -> None:
    if config.qk_norm == "width" and (config.norm, config.norm_weight) != ("rmsnorm", "plain"):
        raise ValueError(
            f"ranks share a qk_norm of the whole width if it is a plain rmsnorm, and this is {config.norm}, "
            f"{config.norm_weight}; use one rank"
        )
    sizes = _shared_sizes(config)
    uneven = [name for name, size in sizes.items() if size % n_ranks]
    if uneven:
        allowed = [n for n in range(1, min(sizes.values()) + 1) if all(size % n == 0 for size in sizes.values())]
        what = " and ".join(f"{name} ({_described(name, sizes[name])})" for name in uneven)
        raise ValueError(f"{n_ranks} ranks cannot share {what} evenly; this model takes {_or(allowed)}")


def _shared_sizes(config: ModelConfig) -> dict[str, int]:
    """What there must be an equal number of on each rank, by its knob."""
    sizes = {"n_kv_heads": config.n_kv_heads}
    if _has_mlps(config):
        sizes["ffn_dim"] = config.ffn_dim
    if config.moe is not None:
        sizes["moe.ffn_dim"] = config.moe.ffn_dim // _EXPERT_WIDTH
        if config.moe.shared_ffn_dim:
            sizes["moe.shared_ffn_dim"] = config.moe.shared_ffn_dim
    return sizes


def _described(name: str, size: int) -> str:
    return f"{size} times {_EXPERT_WIDTH}" if name == "moe.ffn_dim" else str(size)


def _has_mlps(config: ModelConfig) -> bool:
    return not all(config.has_experts(layer) for layer in range(config.n_layers))


def _or(numbers: list[int]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} or {last} ranks" if first else "one rank only"
