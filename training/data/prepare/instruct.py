"""Conversations, or pairs of them, to a prepared folder of rows: the journey of `launch prepare --kind`.

All of it is done again after an interruption: instruction sets are small beside text. dataset.json is written last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from launchyard.model.text.companions import CHAT_TEMPLATE, MORE_TEMPLATES, TOKENIZER_CONFIG, write_companions
from launchyard.model.text.tokenizer import Tokenizer
from launchyard.storage import files
from launchyard.storage.files import normal
from launchyard.storage.redact import without_credentials
from launchyard.training.data.index import (
    DATASET,
    ENCODING,
    TOKENIZER,
    Dataset,
    HoldOut,
    Options,
    RowOptions,
    RowsMade,
    SourceEntry,
    SplitEntry,
    TokenizerEntry,
    dataset_digest,
    read_dataset,
)
from launchyard.training.data.prepare.encode import TokenizerFile, open_tokenizer
from launchyard.training.data.prepare.journal import remove_journal
from launchyard.training.data.prepare.prepare import check_out, lock_out
from launchyard.training.data.prepare.rows import RowGroup, write_rows
from launchyard.training.data.prepare.sources import every_file

if TYPE_CHECKING:
    from launchyard.training.data.instruct.carriers import Split
    from launchyard.training.data.instruct.render import Renderer

ROWS_CHUNK_TOKENS = 2**24  # 64 MiB of uint32
ROWS_A_REPORT = 1000


def prepare_instruct(
    sources: list[str],
    *,
    tokenizer: str,
    out: str,
    options: RowOptions,
    validation: float = 0.0,
    seed: int = 0,
    chunk_tokens: int = ROWS_CHUNK_TOKENS,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Dataset:
    """Makes rows of all conversations or pairs of files, folders, globs and URLs. Returns the description of `out`.

    on_progress: gets the number of conversations or pairs so far. ValueError for faulty ones, and if `out` holds other
    data.
    """
    from launchyard.training.data.instruct.carriers import find_files
    from launchyard.training.data.instruct.render import Renderer

    made = open_tokenizer(tokenizer, eos=None)
    out = normal(out)
    read = every_file(sources)
    general = general_options(validation, seed=seed, chunk_tokens=chunk_tokens)
    made_from = rows_digest(read, made, options, general)
    check_out(out)
    if (there := read_dataset(out)) is not None:
        if there.instruct is None or there.instruct.made_from != made_from:
            raise ValueError(f"{out} holds another data set; choose another --out, or remove it")
        return there
    renderer = Renderer(
        Tokenizer(tokenizer, made.companions),
        style=options.style,
        template=options.template,
        max_tokens=options.seq_len + 1,
        too_long=options.too_long,
        mask_prompt=options.mask_prompt,
    )
    apart = find_files(sources, "validation") if not validation else []
    with lock_out(out):
        splits = write_rows(
            _reported(_groups(sources, options, renderer, "train"), on_progress),
            out,
            chunk_tokens=chunk_tokens,
            validation=validation,
            seed=seed,
            validation_groups=_groups(sources, options, renderer, "validation") if apart else (),
        )
    facts = RowsMade(
        **options.model_dump(), made_from=made_from, dropped=dict(renderer.dropped), counts=dict(renderer.counts)
    )
    dataset = _described(made, splits, facts, general, read)
    # With the template that the rows were made with, so that a model of them is asked as it was trained.
    write_companions(renderer.chat.companions, f"{out}/{TOKENIZER}".rpartition("/")[0], sync=True)
    files.write(f"{out}/{DATASET}", dataset.model_dump_json(indent=1).encode() + b"\n", sync=True)
    remove_journal(out)
    return dataset


def _groups(sources: list[str], options: RowOptions, renderer: Renderer, split: Split) -> Iterator[RowGroup]:
    """The rows of each conversation, or pair."""
    from launchyard.training.data.instruct.shapes import read_conversations, read_pairs

    if options.kind == "preference":
        yield from renderer.pair_rows(read_pairs(sources, columns=options.columns, split=split))
    else:
        read = read_conversations(sources, columns=options.columns, split=split)
        yield from ((row,) for row in renderer.rows(read))


def _described(
    made: TokenizerFile,
    splits: dict[str, SplitEntry],
    facts: RowsMade,
    general: Options,
    read: list[tuple[str, int, str]],
) -> Dataset:
    return Dataset(
        kind=facts.kind,
        digest=dataset_digest({name: entry.digest for name, entry in splits.items()}, made.sha256),
        tokenizer=TokenizerEntry(file=TOKENIZER, sha256=made.sha256, eos=made.eos, eos_id=made.eos_id),
        vocab_size=made.vocab_size,
        dtype="uint32",
        documents=sum(entry.documents for entry in splits.values()),
        empty_documents=0,
        tokens=sum(entry.tokens for entry in splits.values()),
        holdout=HoldOut(unit="rows" if "validation" in splits else "nothing"),
        options=general,
        sources=_entries(read),
        instruct=facts,
        splits=splits,
    )


def general_options(validation: float, *, seed: int = 0, chunk_tokens: int = ROWS_CHUNK_TOKENS) -> Options:
    return Options(validation=validation, seed=seed, chunk_tokens=chunk_tokens, encoding=ENCODING)


def rows_digest(
    read: list[tuple[str, int, str]], tokenizer: TokenizerFile, options: RowOptions, general: Options
) -> str:
    """Changes with the content of the sources, the tokenizer, its templates and the options; not with their place."""
    of_chat = [
        [name, hashlib.sha256(raw).hexdigest()]
        for name, raw in sorted(tokenizer.companions.items())
        if name in (CHAT_TEMPLATE, TOKENIZER_CONFIG) or name.startswith(MORE_TEMPLATES)
    ]
    facts = [tokenizer.sha256, of_chat, options.deciding(), general.model_dump(), [one[1:] for one in read]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _reported(groups: Iterable[RowGroup], on_progress: Callable[[int], None]) -> Iterator[RowGroup]:
    for number, group in enumerate(groups, start=1):
        yield group
        if number % ROWS_A_REPORT == 0:
            on_progress(number)


def _entries(read: list[tuple[str, int, str]]) -> list[SourceEntry]:
    names = [without_credentials(path).rpartition("/")[2] for path, _, _ in read]
    facts = zip(names, read, strict=True)
    return [SourceEntry(name=name, bytes=size, documents=None, xxh3=xxh3) for name, (_, size, xxh3) in facts]
