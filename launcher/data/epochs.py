"""The sequences in each epoch of rows, counted from their lengths. Knows no recipe but its `data`."""

from __future__ import annotations

from launchyard.training.sections.data import DataConfig
from launchyard.training.spec import DataSpec


def with_epochs(spec: DataSpec, data: DataConfig, epochs: float) -> DataSpec:
    """The same with the sequences of so many epochs of rows counted, in a set of one source."""
    from launchyard.training.data.packs import count_packs
    from launchyard.training.data.row_store import group_lengths

    (source,) = spec.train
    assert source.instruct is not None
    packs = count_packs(
        group_lengths(source.folder, source.instruct.together),
        epochs=epochs,
        capacity=data.seq_len,
        seed=data.seed,
        shuffle=data.shuffle,
        packing=data.packing,
    )
    counted = source.instruct.model_copy(update={"packs": packs})
    return spec.model_copy(update={"train": (source.model_copy(update={"instruct": counted}),)})
