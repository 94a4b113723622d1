"""The tokens of a run at a resume: where they were, prepared again from their text, or in another place.

They are always those that the run began with: a place that holds others is refused.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import get_args

from launchyard.errors import UserError, user_errors
from launchyard.run import layout
from launchyard.run.rundir import RunDir
from launchyard.storage import files
from launchyard.training.recipe import Recipe
from launchyard.training.spec import OWN_BATCHES, DataSpec, TokenSource

# Keys that name the place of data. Equal tokens may lie anywhere.
PLACES = ("data.source", "data.mixture", "data.validation", "validation.sets", "tokenizer")
NEW_PLACE = "name its new place if it has moved: launch resume RUN data.source=PLACE; else bring it back"
NEW_HELD_OUT = NEW_PLACE.replace("data.source=PLACE", "data.validation=PLACE, or validation.sets.NAME=PLACE")


def find_moved(recipe: Recipe, data: DataSpec) -> DataSpec:
    """Returns the tokens that a changed recipe names, which are those of `data`; UserError if they are others."""
    from launchyard.launcher.data.resolve import resolve
    from launchyard.training.data.dataset_spec import check_unchanged

    if is_own(data):
        return _find_held_out(recipe, data)
    key = "data.source" if recipe.data.mixture is None else "data.mixture"
    with user_errors():
        found = resolve(
            recipe.data,
            recipe.tokenizer,
            init_from=recipe.model.init_from,
            epochs=recipe.train.max_epochs,
            sets=recipe.validation.sets,
        )
    if not found.prepared:
        if _folders(found.spec) == _folders(data):  # the same text: restore_data prepares it
            return data
        raise UserError(
            f"{key}: the text there is not prepared, so its tokens cannot be compared with those of this run",
            hint="prepare it with `launch prepare`, as it was prepared for this run, and name that folder",
        )
    if not _equal(found.spec, data):
        key = _other_set(found.spec, data) or key
        raise UserError(
            f"{key}: other tokens lie there (digest {found.spec.digest[:12]}) than those of this run "
            f"({data.digest[:12]}): {', '.join(_folders(found.spec))}",
            hint="a run goes on only with its own tokens; make a new run for others",
        )
    with user_errors():
        check_unchanged(found.spec)
    return found.spec


def is_own(data: DataSpec) -> bool:
    """Are its samples made by the user's own code? Then only what is held out, and the tokenizer, lie in a place."""
    return data.train[0].folder == OWN_BATCHES


def _find_held_out(recipe: Recipe, data: DataSpec) -> DataSpec:
    """The same for a run that makes its samples."""
    from launchyard.launcher.data.own_batches import own_batches
    from launchyard.training.data.dataset_spec import check_unchanged

    with user_errors():
        found = own_batches(recipe, base=".", digest=data.digest).spec.model_copy(update={"train": data.train})
    if not _equal(found, data):
        key = _other_set(found, data) or "data.validation"
        theirs, ours = (_in_words(sources) for sources in _of_key(key, found, data))
        raise UserError(
            f"{key}: other tokens lie there ({theirs}) than those of this run ({ours})",
            hint="a run goes on only with its own held-out data; make a new run for others",
        )
    with user_errors():
        check_unchanged(found)
    return found


def _of_key(key: str, *specs: DataSpec) -> list[tuple[TokenSource, ...]]:
    name = key.removeprefix("validation.sets.")
    return [spec.validation if name == key else spec.sets.get(name, ()) for spec in specs]


def _in_words(sources: tuple[TokenSource, ...]) -> str:
    digests = (f", digest {source.digest[:12]}" if source.digest else "" for source in sources)
    both = zip(sources, digests, strict=True)
    return "; ".join(f"{source.n_tokens:,} tokens{digest}" for source, digest in both) or "none"


def count_more(recipe: Recipe, data: DataSpec) -> DataSpec:
    """The same; with more of its epochs counted where a changed recipe asks for them and the rows are there."""
    from launchyard.launcher.data.epochs import with_epochs
    from launchyard.training.data.index import ROWS

    rows = data.train[0].instruct
    epochs = recipe.train.max_epochs
    if rows is None or epochs is None or epochs <= len(rows.packs) or len(data.train) > 1:
        return data
    if not files.exists(f"{data.train[0].folder}/{ROWS}"):
        return data
    with user_errors():
        return with_epochs(data, recipe.data, epochs)


def _equal(found: DataSpec, data: DataSpec) -> bool:
    """Are the tokens the same, whatever their place? Plans of older versions have no digest for each source."""
    if found.digest != data.digest or len(found.train) != len(data.train):
        return False
    parts = zip((found.validation, *_sets(found)), (data.validation, *_sets(data)), strict=True)
    if found.sets.keys() != data.sets.keys() or any(len(one) != len(like) for one, like in parts):
        return False
    return all(_equal_source(one, like) for one, like in zip(_by_place(found), _by_place(data), strict=True))


def _other_set(found: DataSpec, data: DataSpec) -> str | None:
    """The key of a set that holds other tokens, if it is that which differs."""
    for name, sources in found.sets.items():
        theirs = data.sets.get(name, ())
        if len(sources) != len(theirs) or not all(map(_equal_source, sources, theirs)):
            return f"validation.sets.{name}"
    return None


def _sets(data: DataSpec) -> list[tuple[TokenSource, ...]]:
    return [data.sets[name] for name in sorted(data.sets)]


def _by_place(data: DataSpec) -> list[TokenSource]:
    return [*data.train, *data.validation, *(source for one in _sets(data) for source in one)]


def _equal_source(one: TokenSource, like: TokenSource) -> bool:
    return (one.n_tokens, one.weight) == (like.n_tokens, like.weight) and like.digest in (None, one.digest)


def record_moved(run: RunDir, data: DataSpec) -> None:
    """Records the place where all later attempts find the tokens."""
    run.write_json(layout.DATA_PLACE, data.model_dump(mode="json"), sync=True)


def restore_data(recipe: Recipe, data: DataSpec) -> None:
    """Checks that the run's tokens are there. Prepares those gone from the cache again; UserError for the rest."""
    from launchyard.launcher.data.progress import preparing_line
    from launchyard.launcher.data.resolve import ensure_prepared, resolve
    from launchyard.training.data.dataset_spec import check_unchanged
    from launchyard.training.data.index import INDEX, Encoding

    folders = _folders(data)
    gone = [folder for folder in folders if not files.exists(f"{folder}/{INDEX}")]
    if not gone:
        with user_errors():
            check_unchanged(data)
        return
    hint = NEW_HELD_OUT if is_own(data) else NEW_PLACE
    missing = UserError(f"{gone[0]}: the tokens of this run are not there any more", hint=hint)
    if is_own(data):  # held-out folders, which nobody but `launch prepare` makes
        raise missing
    parents = Path(gone[0]).parents  # CACHE/data/DIGEST/train
    cache = str(parents[2]) if len(parents) > 2 else None
    encodings = get_args(Encoding)
    try:
        there = partial(
            resolve, recipe.data, recipe.tokenizer, init_from=recipe.model.init_from, sets=recipe.validation.sets
        )
        ways = [there(cache=cache, encoding=encoding) for encoding in encodings]
    except UserError as error:  # its text is gone too
        raise missing from error
    found = next((way for way in ways if not way.prepared and _folders(way.spec) == folders), None)
    if found is None:
        raise missing
    with user_errors():
        spec = ensure_prepared(found, on_progress=preparing_line(sys.stderr)).spec
    if spec.digest != data.digest:
        raise UserError(f"{gone[0]}: has gone, and its text now makes other tokens", hint=NEW_PLACE)


def _folders(data: DataSpec) -> list[str]:
    return [source.folder for source in data.every_source if source.folder != OWN_BATCHES]
