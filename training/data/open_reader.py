"""The reader of a run's sources: of a stream of tokens, of rows of instructions, or of both. Knows no ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from launchyard.training.batching import ramp_unit, sequences_before
from launchyard.training.data.cache.chunk_cache import ChunkCache
from launchyard.training.data.mixed_reader import LoopedReader, MixedReader, RampedReader
from launchyard.training.data.reader import Reader, TokenReader
from launchyard.training.data.row_reader import RowReader
from launchyard.training.data.row_store import RowStore
from launchyard.training.data.token_store import TokenStore
from launchyard.training.recipe import Recipe
from launchyard.training.spec import TokenSource


def open_reader(
    sources: Sequence[TokenSource],
    *,
    recipe: Recipe,
    global_batch_size: int,
    cache: ChunkCache,
    training: bool,
    warn: Callable[[str], None] = lambda _: None,
) -> Reader:
    """In training sources are mixed by weight and shuffled, and a ramp counts; else they are read once, end to end, as
    they lie.

    warn: gets a text for each source whose bytes cannot be verified.
    """
    if not training:
        return _open(sources, recipe, global_batch_size, cache, training=training, warn=warn)
    ramped = bool(recipe.train.batch_size_ramp)
    size = ramp_unit(recipe.train) if ramped else global_batch_size
    reader: Reader = _open(sources, recipe, size, cache, training=training, warn=warn)
    if ramped:
        reader = RampedReader(reader, recipe.train)
    return LoopedReader(reader, recipe.train.overfit_batches) if recipe.train.overfit_batches else reader


def _open(
    sources: Sequence[TokenSource],
    recipe: Recipe,
    global_batch_size: int,
    cache: ChunkCache,
    *,
    training: bool,
    warn: Callable[[str], None],
) -> Reader:
    settings = recipe.data
    stores = [(RowStore if source.instruct else TokenStore)(source.folder, cache=cache) for source in sources]
    for store in stores:
        if not store.verifiable:
            warn(f"{store.folder} has no digests.json: only the sizes and headers of its chunks can be verified")
    weights = [source.weight for source in sources] if training else None
    stages = settings.mixture_schedule or () if training else ()
    # Steps of the reader, which under a ramp are smaller than those of the run.
    later = [(sequences_before(recipe.train, stage.from_step) // global_batch_size, stage.weights) for stage in stages]
    shuffle = training and settings.shuffle

    def of_tokens(some: Sequence[TokenStore], size: int, weights: Sequence[float] | None = None) -> TokenReader:
        return TokenReader(
            some,
            seq_len=settings.seq_len,
            global_batch_size=size,
            weights=weights,
            later=later if weights else (),
            seed=settings.seed,
            shuffle=shuffle,
        )

    def of_rows(store: RowStore, size: int, epochs: float | None = None) -> RowReader:
        return RowReader(
            store,
            seq_len=settings.seq_len,
            global_batch_size=size,
            seed=settings.seed,
            shuffle=shuffle,
            packing=settings.packing,
            epochs=epochs,
            together=2 if settings.kind == "preference" else 1,
        )

    if not any(isinstance(store, RowStore) for store in stores):
        return of_tokens(stores, global_batch_size, weights)
    if len(stores) == 1 and isinstance(stores[0], RowStore):
        return of_rows(stores[0], global_batch_size, recipe.train.max_epochs if training else None)
    each = [of_rows(store, 1) if isinstance(store, RowStore) else of_tokens([store], 1) for store in stores]
    return MixedReader(each, global_batch_size=global_batch_size, weights=weights, later=later, seed=settings.seed)
