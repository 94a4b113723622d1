"""Whether a model can start from the weights of another config, and its vocabulary in rows of theirs. Light.

What may differ is the vocabulary, and the context by a rule that is said; all else is another model.
"""

from __future__ import annotations

from collections.abc import Mapping

from launchyard.model.config import ModelConfig

_OF_VOCABULARY = {"vocab_size", "padded_vocab_size"}
_STRETCHES = {"rope_scaling", "rope_theta", "window_rope_theta"}


def over_weights(theirs: ModelConfig, fields: Mapping[str, object]) -> dict[str, object]:
    """The knobs of a recipe over those of its weights; the table has as many rows as theirs where those suffice."""
    knobs = {**theirs.model_dump(), **fields}
    wanted = fields.get("vocab_size")
    if "padded_vocab_size" not in fields and isinstance(wanted, int) and wanted > theirs.padded_vocab_size:
        del knobs["padded_vocab_size"]
    return knobs


def check_start(ours: ModelConfig, theirs: ModelConfig, source: str) -> None:
    """ValueError if a model of `ours` cannot start from weights of `theirs`, which `source` holds."""
    longer = ours.max_seq_len > theirs.max_seq_len
    free = _OF_VOCABULARY | {"max_seq_len"} | (_STRETCHES if longer else set())
    found = theirs.model_dump(exclude=free)
    asked = ours.model_dump(exclude=free)
    differing = sorted(key for key in asked if asked[key] != found[key])
    if differing:
        listed = ", ".join(f"{key} is {found[key]} there and {asked[key]} here" for key in differing)
        raise ValueError(f"{source} holds another model: {listed}")
    if longer:
        _check_longer(ours, theirs, source)


def _check_longer(ours: ModelConfig, theirs: ModelConfig, source: str) -> None:
    known = f"model.max_seq_len is {ours.max_seq_len} and that of the weights in {source} is {theirs.max_seq_len}"
    keep = f"keep model.max_seq_len={theirs.max_seq_len}"
    if ours.positions == "learned":
        raise ValueError(f"{known}: their table of positions has no more rows; {keep}")
    grows = ours.rope_scaling is not None and ours.rope_scaling.kind == "dynamic"
    same = all(getattr(ours, key) == getattr(theirs, key) for key in _STRETCHES)
    if same and not grows and ours.rotates_over_all:
        factor = -(-ours.max_seq_len // theirs.max_seq_len)
        rule = f"{{kind: yarn, factor: {factor}, original_max_seq_len: {theirs.max_seq_len}}}"
        raise ValueError(
            f"{known}: rotations beyond were never trained. Say by which rule they stretch, with model.rope_scaling "
            f"(such as {rule}) or a larger model.rope_theta, or {keep}"
        )
