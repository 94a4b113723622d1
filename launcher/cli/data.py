"""The verbs that touch data: `launch prepare` and `launch cache`, and the half of `launch inspect` that is of data.

Heavy modules are imported in a command's body.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_args

import click

from launchyard.errors import LaunchError, UserError, user_errors
from launchyard.launcher.cli.paths import path_or_url
from launchyard.launcher.data.corpus_check import CorpusCheck, check_corpus, corpus_lines
from launchyard.launcher.data.progress import preparing_line
from launchyard.launcher.data.rows_shown import facts_of_rows, lengths_of, sample_rows
from launchyard.launcher.format import duration, json_text, size
from launchyard.storage.files import exists, normal, read_text
from launchyard.training.data.index import (
    DATASET,
    DIGESTS,
    REJECTS,
    TOKENIZER,
    Dataset,
    Digests,
    RowOptions,
    find_tokenizer,
    is_prepared,
    read_dataset,
    read_index,
    read_model,
)
from launchyard.training.sections.data import DataConfig, DataKind

if TYPE_CHECKING:
    from launchyard.launcher.data.caches import Cached
    from launchyard.training.data.check.findings import CorpusFindings

LONG_ROWS = ("drop", "cut-prompt", "cut-answer")
# Options of `launch prepare` for one kind of data, by their names in Python.
OF_TEXT = ("text_key", "workers", "eos", "skip_invalid")
OF_ROWS = ("seq_len", "too_long", "style", "template", "columns", "learn_prompt")
# Those that mean nothing where nothing is written.
OF_WRITING = ("out", "chunk_tokens", "workers", "skip_invalid", "too_long")
OF_CHECK = ("against", "no_near", "page")
TEXT_KEY = "text"


@click.command()
@click.argument("sources", type=path_or_url, metavar="SOURCE…", nargs=-1, required=True)
@click.option(
    "--tokenizer",
    type=path_or_url,
    metavar="T",
    help="tokenizer.json, tokenizer.model, *.tiktoken, *.gguf, a folder or URL with one, or ORG/NAME.",
)
@click.option("--out", type=path_or_url, metavar="URL", help="Folder or URL to write; new, or unfinished before.")
@click.option("--check", is_flag=True, help="Write nothing: report what is in the source, or in a prepared folder.")
@click.option("--against", type=path_or_url, multiple=True, metavar="SOURCE", help="Check: text that is held out, too.")
@click.option("--no-near", is_flag=True, help="Check: leave near duplicates out.")
@click.option("--report", "page", type=path_or_url, metavar="FILE", help="Check: write the report as one HTML page.")
@click.option("--validation", default=0.0, show_default=True, metavar="SHARE", help="Share of the text to hold out.")
@click.option("--seed", default=0, show_default=True, help="Seed of the hold-out.")
@click.option("--chunk-tokens", type=int, metavar="N", help="Tokens a chunk; default: 33,554,432.")
@click.option("--text-key", default=TEXT_KEY, show_default=True, metavar="KEY", help="Key or column with the text.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Processes; default: one a core.")
@click.option("--eos", metavar="TOKEN", help="Token that ends a document; default: what the tokenizer says.")
@click.option("--skip-invalid", is_flag=True, help="Leave invalid documents out, and list them in OUT/rejects.jsonl.")
@click.option(
    "--kind",
    type=click.Choice(get_args(DataKind)),
    default="tokens",
    show_default=True,
    help="tokens of text; rows of conversations (instruct); pairs of answers (preference).",
)
@click.option(
    "--seq-len",
    type=click.IntRange(min=1),
    metavar="N",
    help="Rows: at most N + 1 tokens each; 1024. Check: longer ones are counted.",
)
@click.option("--too-long", type=click.Choice(LONG_ROWS), help="Rows: what becomes of longer ones.")
@click.option("--style", metavar="NAME", help="Rows: a prompt style; default: the tokenizer's chat template.")
@click.option("--template", type=path_or_url, metavar="FILE", help="Rows: another chat template, in Jinja.")
@click.option("--column", "columns", multiple=True, metavar="OURS=THEIRS", help="Rows: a column by another name.")
@click.option("--learn-prompt", is_flag=True, help="Rows: prompts are trained for, too.")
@click.option("--json", "as_json", is_flag=True, help="Print what was made as JSON.")
def prepare(
    sources: tuple[str, ...],
    tokenizer: str | None,
    out: str | None,
    kind: DataKind,
    check: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Turn text into chunks of tokens, or conversations or pairs of answers into rows of them.

    SOURCE is .txt, .md, .jsonl or .parquet, also .gz or .zst; or a folder, a glob or an fsspec URL of such. An
    interrupted preparation goes on when the same command is run again, and so does one that met invalid text after that
    was mended. With --check it reads all and writes nothing: rejects, duplicates, lengths, control tokens, overlap of
    training and held-out text; SOURCE may be a prepared folder, and with --kind conversations or pairs.
    """
    of_check = {name: options.pop(name) for name in OF_CHECK}
    if check:
        with user_errors():
            _refuse_writing({**options, "out": out})
            _check_options(kind, {**options, "seq_len": None})
            rows = None if kind == "tokens" else _row_options(kind, **{name: options[name] for name in OF_ROWS})
            found = check_corpus(list(sources), _asked(tokenizer, of_check, options, rows))
        if of_check["page"]:
            _write_page(of_check["page"], found)
        click.echo(json_text(found.to_json()) if as_json else "\n".join(corpus_lines(found)))
        return
    with user_errors():
        _refuse_outside_check(of_check)
    for flag, value in (("--tokenizer", tokenizer), ("--out", out)):
        if value is None:
            raise click.UsageError(f"Missing option '{flag}'.")
    assert tokenizer is not None and out is not None
    with user_errors(), _prepare_errors():
        _check_options(kind, options)
        of_rows = {name: options.pop(name) for name in OF_ROWS}
        size = {} if options["chunk_tokens"] is None else {"chunk_tokens": options["chunk_tokens"]}
        if kind != "tokens":
            from launchyard.training.data.prepare.instruct import prepare_instruct

            split = {name: options[name] for name in ("validation", "seed")}
            made_as = _row_options(kind, **of_rows)
            made = prepare_instruct(list(sources), tokenizer=tokenizer, out=out, options=made_as, **split, **size)
        else:
            from launchyard.training.data.prepare.prepare import CHUNK_TOKENS
            from launchyard.training.data.prepare.prepare import prepare as run

            given = {**options, "chunk_tokens": CHUNK_TOKENS, **size}
            made = run(list(sources), tokenizer=tokenizer, out=out, on_progress=preparing_line(sys.stderr), **given)
        click.echo(json_text(made.model_dump(mode="json")) if as_json else "\n".join(_described(normal(out), made)))
        if not as_json:
            click.echo(
                f"next: launch RECIPE data.source={normal(out)}{'' if kind == 'tokens' else f' data.kind={kind}'}"
            )


def _asked(
    tokenizer: str | None, of_check: Mapping[str, object], options: Mapping[str, object], rows: RowOptions | None
) -> CorpusCheck:
    """What --check is asked for. `rows`: how conversations and pairs become such."""
    asked = {name: options[name] for name in ("text_key", "validation", "seed", "eos", "seq_len")}
    asked |= {"tokenizer": tokenizer, "against": of_check["against"], "near": not of_check["no_near"], "rows": rows}
    return CorpusCheck.model_validate(asked)


def _write_page(path: str, found: CorpusFindings) -> None:
    from launchyard.launcher.report.corpus import corpus_page

    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(corpus_page(found))
    except OSError as error:
        raise UserError(f"--report {path}: {error.strerror or error}") from error


def _refuse_writing(options: Mapping[str, object]) -> None:
    given = [f"--{name.replace('_', '-').removesuffix('s')}" for name in OF_WRITING if options[name]]
    if given:
        raise UserError(f"{', '.join(given)}: not with --check, which writes nothing")


def _refuse_outside_check(options: Mapping[str, object]) -> None:
    given = [f"--{'report' if name == 'page' else name.replace('_', '-')}" for name, value in options.items() if value]
    if given:
        raise UserError(f"{', '.join(given)}: only with --check")


def _check_options(kind: DataKind, options: Mapping[str, object]) -> None:
    """UserError for options of another kind of data."""
    given = [
        name for name in (OF_ROWS if kind == "tokens" else OF_TEXT) if options[name] not in (None, (), False, TEXT_KEY)
    ]
    if given:
        flags = ", ".join(f"--{'column' if name == 'columns' else name.replace('_', '-')}" for name in given)
        raise UserError(
            f"{flags}: only for {'rows, with --kind instruct or preference' if kind == 'tokens' else 'text'}"
        )


@contextlib.contextmanager
def _prepare_errors() -> Iterator[None]:
    from launchyard.training.data.prepare.encode import PrepareError

    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise
    except PrepareError as error:
        raise LaunchError(str(error)) from error
    except OSError as error:
        raise LaunchError(str(error), hint="the same command goes on where this one ended") from error


def _row_options(
    kind: DataKind,
    *,
    seq_len: int | None,
    too_long: str | None,
    style: str | None,
    template: str | None,
    columns: tuple[str, ...],
    learn_prompt: bool,
) -> RowOptions:
    pairs = [column.partition("=") for column in columns]
    for ours, _, theirs in pairs:
        if not ours or not theirs:
            raise UserError(f"--column {ours}: write OURS=THEIRS, such as prompt=question")
    given = {
        "kind": kind,
        "too_long": too_long,
        "style": style,
        "template": None if template is None else read_text(template),
        "mask_prompt": not learn_prompt,
        "columns": {ours: theirs for ours, _, theirs in pairs} or None,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    return RowOptions.model_validate({"seq_len": seq_len or DataConfig().seq_len, **chosen})


def data_of_recipe(place: str) -> list[str]:
    """The prepared folders of a recipe's sources. Prepares those that are not yet."""
    from launchyard.launcher.data.resolve import ensure_prepared, resolve
    from launchyard.launcher.recipe.load import load_recipe

    with user_errors():
        loaded = load_recipe(place)
        recipe = loaded.recipe
        found = resolve(recipe.data, recipe.tokenizer, init_from=recipe.model.init_from, base=loaded.base)
        spec = ensure_prepared(found, on_progress=preparing_line(sys.stderr)).spec
        return [source.folder.removesuffix("/train") for source in spec.train]


def inspect_data(data: str, *, as_json: bool, verify: bool, sample: int | None) -> None:
    """Describes a folder or URL of tokens; LaunchError if some have changed since."""
    with user_errors():
        folder = normal(data)
        if not is_prepared(folder):
            from launchyard.training.data.dataset_spec import open_dataset

            open_dataset(folder)  # its error names the missing part and the fix
        facts = _facts(folder)
        if sample:
            facts["samples"] = {name: _sample(folder, name, sample) for name in facts["splits"]}
        if verify:
            facts["faults"] = [fault for name in facts["splits"] for fault in _faults(folder, name)]
    click.echo(json_text(facts) if as_json else "\n".join(_inspection_lines(folder, facts)))
    if facts.get("faults"):
        raise LaunchError(
            f"{len(facts['faults'])} of the files of {folder} have changed since they were written",
            hint="bring them back from a copy, or remove the folder and prepare it again",
        )


def _split_folder(folder: str, split: str) -> str:
    return f"{folder}/{split}" if exists(f"{folder}/{DATASET}") else folder


def _facts(folder: str) -> dict[str, Any]:
    dataset = read_dataset(folder)
    if dataset is not None:
        return {"data": folder, **dataset.model_dump()}
    from launchyard.training.data.dataset_spec import open_dataset

    index = read_index(folder)
    spec = open_dataset(folder)
    split = {"tokens": index.n_tokens, "chunks": len(index.chunks)}
    facts = {"data": folder, "digest": spec.digest, "dtype": index.dtype, "tokens": index.n_tokens}
    return {**facts, "verifiable": exists(f"{folder}/{DIGESTS}"), "splits": {"train": split}}


def _described(folder: str, made: Dataset) -> Iterator[str]:
    if made.kind != "tokens":
        of = f"{made.documents:,} rows of instructions"
        if made.kind == "preference":
            of = f"{made.documents // 2:,} pairs of answers"
        yield f"{folder}: {made.tokens:,} tokens, {of}"
        yield from facts_of_rows(made)
        return
    yield f"{folder}: {made.tokens:,} tokens, {made.documents:,} documents"
    begin = f"begin with {made.tokenizer.bos} and " if made.tokenizer.bos else ""
    yield f"  {made.dtype}, vocabulary {made.vocab_size:,}, documents {begin}end with {made.tokenizer.eos}"
    for name, split in made.splits.items():
        yield f"  {name}: {split.tokens:,} tokens in {split.chunks} chunks, digest {split.digest[:12]}"
    holdout = made.holdout
    if holdout.unit == "sections":
        yield f"  held out: sections of about {holdout.section_chars:,} characters, documents being too few"
    if made.empty_documents:
        yield f"  {made.empty_documents:,} documents were empty and left out"
    if made.control_tokens:
        yield f"  {made.control_tokens:,} control tokens are written in the documents; they stay text"
    if made.rejected_documents:
        yield f"  {made.rejected_documents:,} documents were invalid and left out: {folder}/{REJECTS}"


def _inspection_lines(folder: str, facts: dict[str, Any]) -> Iterator[str]:
    dataset = read_dataset(folder)
    if dataset is not None:
        yield from _described(folder, dataset)
        for entry in dataset.sources:
            documents = "" if entry.documents is None else f"{entry.documents:,} documents, "
            yield f"  from {entry.name}: {documents}xxh3 {entry.xxh3}"
        if dataset.kind != "tokens":
            yield from (f"  lengths of {name}: {lengths_of(f'{folder}/{name}')}" for name in dataset.splits)
    else:
        chunks = facts["splits"]["train"]["chunks"]
        yield f"{folder}: {facts['tokens']:,} tokens in {chunks} chunks, {facts['dtype']}; litdata, vocabulary unknown"
        if not facts["verifiable"]:
            yield f"  no {DIGESTS}: a changed byte in its chunks cannot be noticed"
    yield f"  digest {facts['digest']}"
    for name, text in facts.get("samples", {}).items():
        yield f"--- {name}\n{text}"
    if "faults" in facts:
        yield from [f"  wrong: {fault}" for fault in facts["faults"]] or ["  all chunks are intact"]


def _faults(folder: str, split: str) -> Iterator[str]:
    """Faults of the chunks of a split. Reads all of them."""
    from launchyard.storage.errors import CorruptError
    from launchyard.training.data.token_store import TokenStore

    place = _split_folder(folder, split)
    try:
        store = TokenStore(place)
    except (CorruptError, FileNotFoundError, ValueError) as error:
        yield f"{place}: {error}"
        return
    if not store.verifiable and exists(f"{folder}/{DATASET}"):
        yield f"{place}/{DIGESTS} is missing"
    for number in range(len(store.chunks)):
        try:
            store.verify(number)
        except CorruptError as error:
            yield str(error)
    dataset = read_dataset(folder)
    if dataset is None or not store.verifiable:
        return
    if read_model(f"{place}/{DIGESTS}", Digests).digest != dataset.splits[split].digest:
        yield f"{place}/{DIGESTS} is not the one that {DATASET} was written with"


def _sample(folder: str, split: str, n: int) -> str:
    """The first tokens of a split as text. UserError without a tokenizer; errors of damaged chunks are passed on."""
    from launchyard.storage.errors import CorruptError
    from launchyard.training.data.token_store import TokenStore

    if not exists(f"{folder}/{TOKENIZER}"):
        raise UserError(f"{folder} has no {TOKENIZER}: its tokens cannot be shown as text", hint="leave --sample out")
    from launchyard.model.text.tokenizer import Tokenizer

    tokenizer = Tokenizer(find_tokenizer(f"{folder}/{TOKENIZER}"))
    dataset = read_dataset(folder)
    try:
        if dataset is not None and dataset.kind != "tokens":
            pairs = dataset.kind == "preference"
            return sample_rows(_split_folder(folder, split), n, tokenizer, pairs=pairs)
        store = TokenStore(_split_folder(folder, split))
        ids = store.read(0, min(n, store.n_tokens)).tolist()
    except CorruptError as error:
        raise LaunchError(str(error), hint=f"launch inspect {folder} --verify") from error
    return tokenizer.decode(ids, skip_special=False)


@click.command()
@click.option("--clear", is_flag=True, help="Remove all that no live process reads.")
@click.option("--cluster", metavar="NAME|FILE", help="Look where this cluster keeps chunks, as seen from here.")
@click.option("--json", "as_json", is_flag=True, help="Print facts as JSON.")
def cache(clear: bool, cluster: str | None, as_json: bool) -> None:
    """Show what is cached on this machine: chunks of stores, and text that was prepared."""
    with user_errors():
        from launchyard.launcher.backends.cluster import load_cluster
        from launchyard.launcher.backends.section import FIRST
        from launchyard.launcher.data import caches

        place = load_cluster(cluster or FIRST).storage.in_training
        found = caches.read_caches(place.cache, place.cache_bytes)
        facts = found.to_json()
        lines = list(_cache_lines(found))
        if clear:
            freed, stayed = caches.clear(found)
            facts = {"freed": freed, "stayed": stayed}
            lines = [f"removed {size(freed)}"]
            lines += [f"  {name} is in use and stays" for name in stayed]
    click.echo(json_text(facts) if as_json else "\n".join(lines))


def _cache_lines(found: Cached) -> Iterator[str]:
    def when(what: str, moment: float | None, in_use: bool) -> str:
        if in_use:
            return "in use"
        return "never used" if moment is None else f"{what} {duration(max(0.0, time.time() - moment))} ago"

    yield f"chunks of stores: {size(found.chunk_bytes)} of at most {size(found.quota)} in {found.chunks_folder}"
    for source in found.sources:
        used = when("last used", source.used, source.in_use)
        yield f"  {source.url}: {source.chunks} chunks, {size(source.bytes)}, {used}"
    yield f"prepared text: {size(sum(text.bytes for text in found.texts))}"
    for text in found.texts:
        yield f"  {text.path}: {text.summary}, {size(text.bytes)}, {when('made', text.made, text.in_use)}"
