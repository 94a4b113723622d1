"""The data of a run whose samples the user's own code makes: no tokens to find, but a tokenizer, and held-out ones."""

from __future__ import annotations

from launchyard.errors import UserError, user_errors
from launchyard.launcher.data.places import locate
from launchyard.launcher.data.resolve import Part, Resolved
from launchyard.model.text.companions import TOKENIZER
from launchyard.model.text.find import read_tokenizer_files
from launchyard.model.text.special_tokens import tokenizer_vocab_size
from launchyard.training.batching import count_steps, sequences_before
from launchyard.training.data.dataset_spec import mix, open_dataset, with_sets
from launchyard.training.data.index import find_tokenizer
from launchyard.training.recipe import Recipe
from launchyard.training.spec import OWN_BATCHES, DataSpec, TokenSource


def own_batches(recipe: Recipe, *, base: str, digest: str) -> Resolved:
    """`digest`: of the code. UserError names the key to fix."""
    data = recipe.data
    _check(recipe)
    held_out: tuple[TokenSource, ...] = ()
    if isinstance(data.validation, str):
        with user_errors("data.validation"):
            there = open_dataset(locate(data.validation, base))
        held_out = there.validation or there.train
    tokenizer = None
    vocab_size = None
    if recipe.tokenizer is not None:
        with user_errors("tokenizer"):
            tokenizer = find_tokenizer(locate(recipe.tokenizer, base))
            vocab_size = tokenizer_vocab_size(read_tokenizer_files(tokenizer)[TOKENIZER], name=tokenizer)
    made = TokenSource(folder=OWN_BATCHES, n_tokens=1)
    spec = DataSpec(train=(made,), validation=held_out, tokenizer=tokenizer, digest=digest)
    spec = with_sets(spec, _sets(recipe, base))
    samples = sequences_before(recipe.train, count_steps(recipe, spec))
    made = made.model_copy(update={"n_tokens": samples * data.seq_len + 1})
    spec = spec.model_copy(update={"train": (made,)})
    return Resolved((Part("code", spec, vocab_size),), data.validation, spec)


def _sets(recipe: Recipe, base: str) -> dict[str, DataSpec]:
    """validation.sets, each in folders that are prepared."""
    found = {}
    for name, given in recipe.validation.sets.items():
        with user_errors(f"validation.sets.{name}"):
            there = [open_dataset(locate(place, base)) for place in ([given] if isinstance(given, str) else given)]
            found[name] = mix(there, [1.0] * len(there))
    return found


def _check(recipe: Recipe) -> None:
    data = recipe.data
    taken = "batches of your own code takes its place; leave it out"
    if data.source is not None or data.mixture is not None:
        raise UserError(f"data.{'source' if data.mixture is None else 'mixture'}: {taken}")
    if data.kind != "tokens":
        raise UserError(f"data.kind: {data.kind}; rows of batches are kind tokens; leave it out")
    if recipe.train.max_epochs is not None:
        raise UserError("train.max_epochs: batches of your own code has no end; use train.max_steps or max_tokens")
    if recipe.validation.every_epochs is not None:
        raise UserError("validation.every_epochs: batches of your own code has no epochs; use validation.every_steps")
    if recipe.train.overfit_batches is not None:
        raise UserError("train.overfit_batches: batches of your own code decides what is read; leave it out")
    if isinstance(data.validation, float) and data.validation:
        raise UserError("data.validation: a share of nothing; name a folder made by `launch prepare`, or leave it out")
