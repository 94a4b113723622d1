"""`launch export`: weights in the form of another program. torch is imported in a body only."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from launchyard.errors import UserError
from launchyard.launcher.cli.completion import complete_run
from launchyard.launcher.cli.model import MODEL_HELP, find_model, weights_errors
from launchyard.launcher.cli.paths import path_or_url
from launchyard.launcher.format import SIZE, bytes_of, json_text
from launchyard.launcher.watch.transfer import OnBytes, transfer_bar

if TYPE_CHECKING:
    from launchyard.model.config import ModelConfig
    from launchyard.model.weights.load import Weights
    from launchyard.model.weights.source import Source


@dataclass(frozen=True)
class Export:
    """What is written, and where to. `dtype` and `shard_bytes` are None where the form's own default holds."""

    source: Source
    config: ModelConfig
    weights: Weights
    out: str
    dtype: str | None
    shard_bytes: int | None


def export_hf(asked: Export, on_progress: OnBytes) -> None:
    """A folder that transformers opens."""
    import torch

    from launchyard.model.weights.hf_export import MAX_FILE_BYTES, save_hf

    save_hf(
        asked.weights,
        asked.config,
        asked.out,
        companions=asked.source.companions(),
        max_file_bytes=asked.shard_bytes or MAX_FILE_BYTES,
        dtype=getattr(torch, asked.dtype) if asked.dtype else None,
        on_progress=on_progress,
    )


FORMS: dict[str, Callable[[Export, OnBytes], None]] = {"hf": export_hf}
# The element types of each form, by the names that --dtype takes.
DTYPES: dict[str, tuple[str, ...]] = {"hf": ("float32", "bfloat16", "float16")}


class FileSize(click.ParamType[int]):
    """A number of bytes with its unit: 5GB, 500MB, 2GiB."""

    name = "size"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if not re.fullmatch(SIZE, value) or not bytes_of(value):
            self.fail(f"{value!r} is no size; write a number and its unit, such as 500MB, 5GB or 2GiB", param, ctx)
        return bytes_of(value)


@click.command(epilog=MODEL_HELP)
@click.argument("model", metavar="MODEL", shell_complete=complete_run)
@click.option("--to", "form", type=click.Choice(list(FORMS)), default="hf", show_default=True, help="Form of it.")
@click.option("--out", type=path_or_url, required=True, metavar="DIR", help="Folder or URL to write; new or empty.")
@click.option(
    "--dtype",
    type=click.Choice(list(dict.fromkeys(name for names in DTYPES.values() for name in names))),
    help="Element type of the tensors; default: as they are.",
)
@click.option("--shard-size", type=FileSize(), metavar="SIZE", help="Largest size of a file, default 5GB.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def export(model: str, form: str, out: str, dtype: str | None, shard_size: int | None, as_json: bool) -> None:
    """Write weights as a Hugging Face folder: safetensors, config.json and tokenizer.

    Holds one tensor in memory at a time. config.json is written last: a folder without it is no model yet.
    """
    if dtype is not None and dtype not in DTYPES[form]:
        raise UserError(f"--dtype {dtype} is no element type of --to {form}; it has {', '.join(DTYPES[form])}")
    with weights_errors():
        from launchyard.model.cost import n_params
        from launchyard.model.weights.load import open_weights
        from launchyard.model.weights.source import find_source
        from launchyard.storage.files import listdir, usage

        place = find_model(model)
        source = find_source(place)
        config, weights = open_weights(place)
        if listdir(out):
            raise UserError(f"--out {out} is not empty; name a new folder, so that nothing is overwritten")
        with transfer_bar(f"export to {out}", sys.stderr) as on_progress:
            FORMS[form](Export(source, config, weights, out, dtype, shard_size), on_progress)
        files = sorted(listdir(out))
        n_bytes = usage(out)[1]
    facts = {
        "out": out,
        "form": form,
        "files": files,
        "bytes": n_bytes,
        "n_params": n_params(config),
        "tokenizer": source.tokenizer,
    }
    if as_json:
        click.echo(json_text(facts))
        return
    click.echo(f"{out}: {n_params(config):,} parameters in {', '.join(files)}")
    if source.tokenizer is None:
        click.echo("there was no tokenizer beside the weights; add a tokenizer.json before text is wanted", err=True)
