"""Rules that map a family's keys to ours, as data that is read in both directions. Light; touches no tensor.

A rule says which elements of one of their tensors are which elements of ours, as two views of equal shape: an import
copies from theirs to ours, an export from ours to theirs, so that one is the inverse of the other. A key holds `{i}`
where the number of the layer stands, and `{e}` where that of the expert does. A rule counts only where the config has
the parameters it names, so that one list serves configs with and without biases.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from launchyard.model.config import ModelConfig
from launchyard.model.layout import TensorShape, parameter_shapes
from launchyard.model.zoo.views import View, whole

# How the rows of several of ours lie in one of theirs: one after the other; head by head; group by group of query
# heads with their key and value; in turns, row by row.
Layout = Literal["blocks", "heads", "groups", "turns"]


@dataclass(frozen=True)
class Rename:
    """One of theirs is one of ours, or several of ours, fused.

    transposed: theirs is (in, out). in_pairs: the rotated rows of each head are those of its pairs (0, 1), (2, 3) …,
    where ours are (0, n / 2), (1, n / 2 + 1) … backwards: they turn the other way round, so that the two halves of the
    rotated rows stand in each other's place. plus: ours = theirs + plus. when: the configs that it counts for, of a
    family whose keys have several names.
    """

    theirs: str
    ours: str | tuple[str, ...]
    layout: Layout = "blocks"
    transposed: bool = False
    in_pairs: bool = False
    backwards: bool = False
    plus: float = 0.0
    when: Callable[[ModelConfig], bool] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return (self.ours,) if isinstance(self.ours, str) else self.ours


@dataclass(frozen=True)
class Drop:
    """One of theirs is no parameter: a table or a mask that follows from the config.

    behind_last: all whose key begins so, of layers behind the last one; they predict several tokens at once.
    """

    theirs: str
    behind_last: bool = False

    def matches(self, key: str, n_layers: int) -> bool:
        if not self.behind_last:
            return _pattern(self.theirs).fullmatch(key) is not None
        found = re.match(re.escape(self.theirs).replace(r"\{i\}", r"(\d+)"), key)
        return found is not None and int(found[1]) >= n_layers


@dataclass(frozen=True)
class LatentHeads:
    """The keys' or the values' share of each head's rows of a latent attention's kv_b_proj, as one of theirs.

    Theirs is (heads, rows, rank); that of the keys is (heads, rank, rows).
    """

    theirs: str
    ours: str
    part: Literal["k", "v"]

    @property
    def names(self) -> tuple[str, ...]:
        return (self.ours,)


Rule = Rename | Drop | LatentHeads


@dataclass(frozen=True)
class Overlap:
    """Elements that one of their tensors and one of ours have in common: views of equal shape, ours = theirs + plus."""

    ours: str
    ours_view: View
    theirs: str
    theirs_view: View
    plus: float = 0.0


def overlaps(rules: tuple[Rule, ...], config: ModelConfig) -> list[Overlap]:
    """Everything that is the same in their files and in a model of ours; in the order of our parameters."""
    shapes = parameter_shapes(config)
    found: dict[str, list[Overlap]] = {name: [] for name in shapes}
    for overlap, _ in _all_overlaps(rules, config, shapes):
        found[overlap.ours].append(overlap)
    lacking = [name for name, of_name in found.items() if not of_name]
    assert not lacking, f"no rule for {lacking}"
    return [overlap for of_name in found.values() for overlap in of_name]


def their_shapes(rules: tuple[Rule, ...], config: ModelConfig) -> dict[str, TensorShape]:
    """Their key -> its whole shape."""
    return {overlap.theirs: shape for overlap, shape in _all_overlaps(rules, config, parameter_shapes(config))}


def rule_keys(rules: tuple[Rule, ...], keys: Iterable[str]) -> dict[str, str]:
    """Key as the rules have it -> as a file has it.

    They differ where the file is that of the bare model, without its head: all of its keys lack their first part.
    """
    found = list(keys)
    of_head = {rule.theirs for rule in rules if isinstance(rule, Rename) and rule.names[0].startswith("lm_head.")}
    firsts = {rule.theirs.partition(".")[0] for rule in rules if rule.theirs not in of_head}
    first = f"{firsts.pop()}." if len(firsts) == 1 else ""
    if any(key.startswith(first) for key in found):
        return {key: key for key in found}
    heads = tuple(f"{key.rpartition('.')[0]}." for key in of_head)  # an adapter has other tensors of the same module
    return {key if key.startswith(heads) else first + key: key for key in found}


def check_keys(
    rules: tuple[Rule, ...],
    config: ModelConfig,
    keys: Iterable[str],
    *,
    where: str,
    hint: str = "Is config.json that of these files?",
) -> None:
    """ValueError that names the keys which are missing or which no rule knows, and ends with `hint`."""
    present = set(keys)
    expected = set(their_shapes(rules, config))
    droppable = [rule for rule in rules if isinstance(rule, Drop)]
    if config.tie_embeddings:  # many tied models carry a copy of the table as their head
        droppable += [Drop(rule.theirs) for rule in rules if isinstance(rule, Rename) and _is_head(rule)]
    unmatched = {key for key in present - expected if not any(drop.matches(key, config.n_layers) for drop in droppable)}
    problems = []
    if missing := expected - present:
        problems.append(f"missing {_some(missing)}")
    if unmatched:
        problems.append(f"unknown {_some(unmatched)}")
    if problems:
        raise ValueError(
            f"{where}: the tensors do not fit a {config.family} model with {config.n_layers} layers: "
            f"{'; '.join(problems)}. {hint}"
        )


def _all_overlaps(
    rules: tuple[Rule, ...], config: ModelConfig, shapes: dict[str, TensorShape]
) -> Iterator[tuple[Overlap, TensorShape]]:
    """Each with the whole shape of their tensor."""
    for rule in rules:
        if isinstance(rule, Drop) or (isinstance(rule, Rename) and rule.when is not None and not rule.when(config)):
            continue
        for layer in range(config.n_layers) if "{i}" in rule.theirs else (0,):
            names = tuple(name.replace("{i}", str(layer)) for name in rule.names)
            if names[0] not in shapes:
                continue
            assert all(name in shapes for name in names), f"{rule} counts for some of its names only"
            key = rule.theirs.replace("{i}", str(layer))
            if isinstance(rule, LatentHeads):
                yield _of_heads(rule, config, key, names[0], shapes[names[0]])
                continue
            experts = range(shapes[names[0]][0]) if "{e}" in key else (None,)
            for expert in experts:
                yield from _overlaps_of(rule, config, key, names, shapes, expert)


def _overlaps_of(
    rule: Rename,
    config: ModelConfig,
    key: str,
    names: tuple[str, ...],
    shapes: dict[str, TensorShape],
    expert: int | None,
) -> Iterator[tuple[Overlap, TensorShape]]:
    views = [whole(shapes[name]) if expert is None else whole(shapes[name]).at(0, expert) for name in names]
    axis = _row_axis(names[0], views[0].shape)
    rows = [view.shape[axis] for view in views]
    canonical = [*views[0].shape]
    canonical[axis] = sum(rows)
    shape = tuple(canonical)
    if rule.transposed and len(shape) > 1 and _is_matrix(names[0]):
        shape = (*shape[:-2], shape[-1], shape[-2])
        theirs = whole(shape).swap(len(shape) - 2, len(shape) - 1)
    else:
        theirs = whole(shape)
    their_key = key if expert is None else key.replace("{e}", str(expert))
    parts = _parts(rule.layout, config, theirs, views, axis, rows)
    for name, (our_part, their_part) in zip(names, parts, strict=True):
        pairs = [(our_part, their_part)]
        if rule.in_pairs or rule.backwards:
            pairs = list(_turned(config, name, our_part, their_part, axis, backwards=rule.backwards))
        for our_view, their_view in pairs:
            assert our_view.shape == their_view.shape, f"{rule}: {our_view.shape} is not {their_view.shape}"
            yield Overlap(name, our_view, their_key, their_view, rule.plus), shape


def _of_heads(
    rule: LatentHeads, config: ModelConfig, key: str, name: str, ours: TensorShape
) -> tuple[Overlap, TensorShape]:
    sizes = config.latent_attention
    assert sizes is not None, f"{rule} is for a latent attention"
    start, length = (0, sizes.nope_dim) if rule.part == "k" else (sizes.nope_dim, sizes.v_dim)
    view = whole(ours).split(0, (config.n_heads, sizes.nope_dim + sizes.v_dim)).cut(1, start, length)
    if rule.part == "k":
        view = view.swap(1, 2)
    return Overlap(name, view, key, whole(view.shape)), view.shape


def _parts(
    layout: Layout, config: ModelConfig, theirs: View, views: list[View], axis: int, rows: list[int]
) -> Iterator[tuple[View, View]]:
    """Of each of ours: its view, and that of its rows among theirs, of equal shape."""
    if layout == "blocks" or len(views) == 1:
        start = 0
        for view, count in zip(views, rows, strict=True):
            yield view, theirs.cut(axis, start, count)
            start += count
    elif layout == "heads":
        by_head = theirs.split(axis, (config.n_heads, len(views), config.head_dim))
        for number, view in enumerate(views):
            yield view.split(axis, (config.n_heads, config.head_dim)), by_head.at(axis + 1, number)
    elif layout == "turns":
        by_turn = theirs.split(axis, (rows[0], len(views)))
        for number, view in enumerate(views):
            yield view, by_turn.at(axis + 1, number)
    else:
        queries, keys, values = views
        groups = config.n_kv_heads
        share = config.n_heads // groups
        by_group = theirs.split(axis, (groups, share + 2, config.head_dim))
        yield queries.split(axis, (groups, share, config.head_dim)), by_group.cut(axis + 1, 0, share)
        for number, view in enumerate((keys, values)):
            yield view.split(axis, (groups, config.head_dim)), by_group.at(axis + 1, share + number)


def _turned(
    config: ModelConfig, name: str, ours: View, theirs: View, axis: int, *, backwards: bool
) -> Iterator[tuple[View, View]]:
    """The same elements, but for the rotated rows of each head: theirs has them pair by pair, or its halves swapped."""
    head, start, length = _rotated_rows(config, name)
    if not length:
        yield ours, theirs
        return
    if ours.shape[axis] != head:  # rows of several heads
        heads = ours.shape[axis] // head
        ours = ours.split(axis, (heads, head))
        theirs = theirs.split(axis, (heads, head))
        axis += 1
    for before in ((0, start), (start + length, head - start - length)):
        if before[1]:
            yield ours.cut(axis, *before), theirs.cut(axis, *before)
    half = length // 2
    if backwards:
        for mine, yours in ((start, start + half), (start + half, start)):
            yield ours.cut(axis, mine, half), theirs.cut(axis, yours, half)
        return
    yield (
        ours.cut(axis, start, length).split(axis, (2, half)),
        theirs.cut(axis, start, length).split(axis, (half, 2)).swap(axis, axis + 1),
    )


def _rotated_rows(config: ModelConfig, name: str) -> tuple[int, int, int]:
    """Rows of a head, and the first and the number of those that rotate; none of a tensor that does not."""
    part = name.split(".")[-2]
    latent = config.latent_attention
    if latent is None:
        return config.head_dim, 0, config.rope_dim if part in ("q_proj", "k_proj", "q_norm", "k_norm") else 0
    if part in ("q_proj", "q_b_proj"):
        return latent.nope_dim + latent.rope_dim, latent.nope_dim, latent.rope_dim
    if part == "kv_a_proj":
        return latent.kv_rank + latent.rope_dim, latent.kv_rank, latent.rope_dim
    return 1, 0, 0


def _row_axis(name: str, shape: TensorShape) -> int:
    """The axis of a matrix's outputs; of a vector, or one for each head or expert, its last."""
    return len(shape) - (2 if _is_matrix(name) and len(shape) > 1 else 1)


def _is_matrix(name: str) -> bool:
    module, _, kind = name.rpartition(".")
    return kind == "weight" and not module.endswith("norm")


def _is_head(rule: Rename) -> bool:
    return rule.ours == "lm_head.weight"


def _pattern(theirs: str) -> re.Pattern[str]:
    return re.compile(re.escape(theirs).replace(r"\{i\}", r"\d+").replace(r"\{e\}", r"\d+"))


def _some(keys: set[str], limit: int = 5) -> str:
    listed = ", ".join(sorted(keys)[:limit])
    return listed if len(keys) <= limit else f"{listed} and {len(keys) - limit} more"
