"""`launch download` and `launch fetch-corpus`: a model, or a set of data, of the Hugging Face hub onto this machine."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, TypedDict, Unpack

import click

from launchyard.errors import UserError, user_errors
from launchyard.host.environment import variable
from launchyard.launcher.cli.completion import complete_model
from launchyard.launcher.cli.paths import path_or_url
from launchyard.launcher.format import SIZE, bytes_of, json_text, size, table

if TYPE_CHECKING:
    from launchyard.launcher.hub.download import Download
    from launchyard.storage.hub_cache import HubName


class _Options(TypedDict):
    """What both commands have."""

    include: tuple[str, ...]
    exclude: tuple[str, ...]
    max_bytes: int | None
    max_files: int | None
    out: str | None
    dry_run: bool
    as_json: bool


class _Bytes(click.ParamType[int]):
    """20GB, 500MiB, or a plain number."""

    name = "size"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value.isdigit():
            return int(value)
        if not re.fullmatch(SIZE, value):
            self.fail(f"{value!r} is no size; write such as 20GB or 500MiB", param, ctx)
        return bytes_of(value)


_EPILOG = (
    "A token for gated and private ones comes from HF_TOKEN, or from `hf auth login`. HF_ENDPOINT names another hub "
    "or a mirror; HF_HOME or HF_HUB_CACHE another cache."
)
_REVISION = click.option("--revision", metavar="REV", help="Branch, tag or commit.  [default: main]")
_INCLUDE = click.option("--include", multiple=True, metavar="PATTERN", help="These files, not those that we read.")
_EXCLUDE = click.option("--exclude", multiple=True, metavar="PATTERN", help="Not these files.")
_OUT = click.option("--out", type=path_or_url, metavar="DIR", help="A plain folder.  [default: the hub's cache]")
_DRY_RUN = click.option("--dry-run", is_flag=True, help="List the files and their bytes; fetch and write nothing.")
_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print what was fetched as JSON.")
_MAX_BYTES = click.option("--max-bytes", type=_Bytes(), metavar="SIZE", help="Of data: no more in all, such as 20GB.")


@click.command(epilog=_EPILOG)
@click.argument("name", metavar="ORG/NAME[@REVISION][:FILE]", shell_complete=complete_model)
@click.option("--dataset", is_flag=True, help="A set of data: ORG/NAME, or a short name such as alpaca.")
@_REVISION
@click.option("--file", metavar="FILE", help="Only this file; of a GGUF file a part of its name will do: Q4_K_M.")
@click.option("--tokenizer-only", is_flag=True, help="Tokenizer, template and config.json, no weights.")
@_INCLUDE
@_EXCLUDE
@_MAX_BYTES
@click.option("--max-files", type=click.IntRange(min=1), metavar="N", help="Of data: the first N files by name.")
@_OUT
@_DRY_RUN
@_AS_JSON
def download(
    name: str, dataset: bool, revision: str | None, file: str | None, tokenizer_only: bool, **options: Unpack[_Options]
) -> None:
    """Get a model, or a set of data, from the Hugging Face hub.

    Takes the files that are read here, each kind of weights once. Its name then works wherever a MODEL does, or as
    data.source. Prints the folder.
    """
    with user_errors():
        if not dataset and (options["max_bytes"] is not None or options["max_files"] is not None):
            raise UserError("--max-bytes and --max-files: only with --dataset; a model is fetched whole")
        parsed = _parsed(_repo_of(name) if dataset else name, revision=revision, file=file)
    _bring(name, parsed, dataset=dataset, tokenizer_only=tokenizer_only, **options)


@click.command("fetch-corpus", epilog=_EPILOG)
@click.argument("name", metavar="NAME")
@_REVISION
@_INCLUDE
@_EXCLUDE
@_MAX_BYTES
@click.option("--files", "max_files", type=click.IntRange(min=1), metavar="N", help="The first N files by name.")
@_OUT
@_DRY_RUN
@_AS_JSON
def fetch_corpus(name: str, revision: str | None, **options: Unpack[_Options]) -> None:
    """Get text to train on from the Hugging Face hub: fineweb, openwebtext, tinystories, slimpajama … or ORG/NAME.

    The same as `launch download NAME --dataset`, and prints the command that makes tokens of it. What was cut goes on
    where it ended; a higher limit later fetches the files that are missing.
    """
    with user_errors():
        parsed = _parsed(_repo_of(name), revision=revision, file=None)
    found = _bring(name, parsed, dataset=True, **options)
    if not options["dry_run"] and not options["as_json"]:
        click.echo(f"next: {_next_step(name, found.destination.folder)}", err=True)


def _next_step(name: str, folder: str) -> str:
    """The command that prepares a set of data."""
    from launchyard.training.data.built_in import BUILT_IN

    known = BUILT_IN.get(name)
    sources = [folder] if known is None else [f"'{folder}/{pattern}'" for pattern in known.files]
    words = ["launch prepare", *sources, "--tokenizer T --out", f"data/{name.rpartition('/')[2]}"]
    if known is not None and known.text_key != "text":
        words.append(f"--text-key {known.text_key}")
    if known is not None and known.kind != "tokens":
        words.append(f"--kind {known.kind}")
    return " ".join(words)


def _bring(
    name: str, parsed: HubName, *, dataset: bool, tokenizer_only: bool = False, **options: Unpack[_Options]
) -> Download:
    """Fetches what is chosen, and tells what and where."""
    from launchyard.launcher.hub.client import HubClient
    from launchyard.launcher.hub.download import perform, plan_download
    from launchyard.launcher.hub.progress import download_line
    from launchyard.launcher.hub.selection import Choice

    with user_errors():
        _check_online(name, dataset=dataset)
        out = options["out"]
        if out is not None and "://" in out:
            raise UserError(f"--out {out}: a download goes into a folder of this machine")
        client = HubClient("dataset" if dataset else "model")
        choice = Choice(
            tokenizer_only=tokenizer_only,
            file=parsed.file,
            include=options["include"] or (_files_of(name, parsed) if dataset else ()),
            exclude=options["exclude"],
            max_files=options["max_files"],
            max_bytes=options["max_bytes"],
        )
        found = plan_download(client, parsed.repo, revision=parsed.revision or "main", choice=choice, out=out)
        if not options["dry_run"]:
            if not options["as_json"]:
                click.echo(_summary(found), err=True)
            try:
                perform(client, found, on_progress=download_line(sys.stderr))
            except KeyboardInterrupt:
                click.echo("\nwhat came stays; the same command goes on from there", err=True)
                raise
    if options["as_json"]:
        click.echo(json_text(_facts(found, dry_run=options["dry_run"])))
    elif options["dry_run"]:
        rows = [[file.path, f"{file.size:,}", "missing" if file in found.missing else "here"] for file in found.chosen]
        click.echo("\n".join(table(rows, ("file", "bytes", "state"))))
        click.echo(_summary(found), err=True)
    else:
        click.echo(found.destination.folder)
    return found


def _parsed(name: str, *, revision: str | None, file: str | None) -> HubName:
    """The name together with --revision and --file, which must not contradict it."""
    from launchyard.storage.hub_cache import HubName, parse_hub_name

    parsed = parse_hub_name(name.removeprefix("https://huggingface.co/").rstrip("/"))
    if parsed is None:
        raise UserError(f"{name} is no name of the hub; write ORG/NAME, such as HuggingFaceTB/SmolLM2-135M")
    for option, value, named in (("--revision", revision, parsed.revision), ("--file", file, parsed.file)):
        if value and named not in (None, value):
            raise UserError(f"{name} and {option} {value} name two different things; leave one out")
    return HubName(parsed.repo, parsed.revision or revision, parsed.file or file)


def _repo_of(name: str) -> str:
    """The repository of a short name; UserError for one that is none and has no slash."""
    from launchyard.training.data.built_in import BUILT_IN

    if name in BUILT_IN:
        return BUILT_IN[name].repo
    if "/" not in name:
        raise UserError(f"{name}: no such set of data", hint=f"known are {', '.join(BUILT_IN)}; others are ORG/NAME")
    return name.removeprefix("https://huggingface.co/datasets/")


def _files_of(name: str, parsed: HubName) -> tuple[str, ...]:
    """Patterns of the files of a set of data; none where one is named."""
    from launchyard.training.data.built_in import ABOUT, BUILT_IN, ROW_FILES

    if parsed.file is not None:
        return ()
    return (*(BUILT_IN[name].files if name in BUILT_IN else ROW_FILES), *ABOUT)


def _check_online(name: str, *, dataset: bool) -> None:
    """UserError where the user's variables forbid to ask a hub."""
    from launchyard.storage.hub_cache import find_downloaded, find_downloaded_dataset

    for key in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if (variable(key) or "").upper() in ("1", "ON", "YES", "TRUE"):
            here = find_downloaded_dataset(_repo_of(name)) if dataset else find_downloaded(name)
            there = f"; it is here from an earlier download: {here}" if here else ""
            raise UserError(f"{key} is set, so no hub is asked for {name}{there}", hint=f"unset {key} to download")


def _summary(found: Download) -> str:
    commit = found.model.commit[:12]
    total = sum(file.size for file in found.chosen)
    if not found.missing:
        return f"{found.model.repo}@{commit}: all {len(found.chosen)} files are here, {size(total)}"
    what = f"{len(found.missing)} of {len(found.chosen)} files, {size(found.left())} of {size(total)} to fetch"
    return f"{found.model.repo}@{commit}: {what}"


def _facts(found: Download, *, dry_run: bool) -> dict[str, object]:
    done = "missing" if dry_run else "fetched"
    return {
        "model": found.model.repo,
        "revision": found.revision,
        "commit": found.model.commit,
        "folder": found.destination.folder,
        "bytes": sum(file.size for file in found.chosen),
        "files": [
            {"path": file.path, "bytes": file.size, "state": done if file in found.missing else "here"}
            for file in found.chosen
        ],
    }
