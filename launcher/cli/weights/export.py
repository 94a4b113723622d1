"""`launch export`: weights in the form of another program. torch is imported in a body only."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from launchyard.errors import UserError
from launchyard.launcher.cli.completion import complete_model
from launchyard.launcher.cli.paths import path_or_url
from launchyard.launcher.cli.weights.find import MODEL_HELP, find_model, weights_errors
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


@dataclass(frozen=True)
class Exported:
    """n_params: of what lies there now, an adapter's without its base. notes: for the user."""

    n_params: int
    notes: list[str]


def export_hf(asked: Export, on_progress: OnBytes) -> Exported:
    """A folder that transformers opens."""
    import torch

    from launchyard.model.cost import n_params
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
    return Exported(n_params(asked.config), [])


def export_gguf(asked: Export, on_progress: OnBytes) -> Exported:
    """One file that llama.cpp runs, with the tokenizer inside."""
    from launchyard.model.cost import n_params
    from launchyard.model.text.to_gguf import gguf_tokenizer_keys
    from launchyard.model.weights.gguf_export import save_gguf

    if asked.shard_bytes is not None:
        raise UserError("--shard-size is for --to hf; a GGUF export is one file")
    tokenizer = gguf_tokenizer_keys(asked.source.companions(), asked.config.padded_vocab_size)
    path = asked.out if asked.out.endswith(_GGUF) else f"{asked.out}/model{_GGUF}"
    keys = {"general.name": asked.source.name, **tokenizer}
    notes = save_gguf(asked.weights, asked.config, path, dtype=asked.dtype, more_keys=keys, on_progress=on_progress)
    return Exported(n_params(asked.config), notes)


def export_peft(asked: Export, on_progress: OnBytes) -> Exported:
    """The adapter of a run as PEFT reads it, without its base."""
    from launchyard.model.text.companions import write_companions
    from launchyard.model.weights.adapters.peft_export import save_peft
    from launchyard.model.weights.load import CheckpointWeights, MergedWeights

    run = asked.weights.base if isinstance(asked.weights, MergedWeights) else None
    if not isinstance(run, CheckpointWeights):
        raise UserError(f"--to peft is for runs with low-rank updates, and {asked.source.folder} has none")
    if asked.shard_bytes is not None:
        raise UserError("--shard-size is for --to hf; an adapter is one file")
    saved = save_peft(run, asked.out)
    write_companions(asked.source.companions(), asked.out)
    return Exported(saved.n_params, saved.notes)


_GGUF = ".gguf"
FORMS: dict[str, Callable[[Export, OnBytes], Exported]] = {"hf": export_hf, "gguf": export_gguf, "peft": export_peft}
# The element types of each form, by the names that --dtype takes. K quants are made by llama.cpp's llama-quantize.
DTYPES: dict[str, tuple[str, ...]] = {
    "hf": ("float32", "bfloat16", "float16"),
    "peft": ("float32",),
    "gguf": ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"),
}

# One type by the names of both forms, and as it is often typed.
_SAME = ({"float32", "f32", "fp32"}, {"bfloat16", "bf16"}, {"float16", "f16", "fp16"})


def dtype_of(form: str, typed: str) -> str:
    """The form's own name of an element type, in any case; UserError if it has no such type."""
    names = next((names for names in _SAME if typed.lower() in names), {typed.lower()})
    for own in DTYPES[form]:
        if own.lower() in names:
            return own
    raise UserError(f"--dtype {typed} is no element type of --to {form}; it has {', '.join(DTYPES[form])}")


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
@click.argument("model", metavar="MODEL", shell_complete=complete_model)
@click.option("--to", "form", type=click.Choice(list(FORMS)), default="hf", show_default=True, help="Form of it.")
@click.option(
    "--out",
    type=path_or_url,
    required=True,
    metavar="DIR",
    help="Folder or URL to write, new or empty; of gguf, or its file.",
)
@click.option(
    "--dtype",
    metavar="NAME",
    help="Element type of the tensors: "
    + "; ".join(f"of {form} {', '.join(names)}" for form, names in DTYPES.items())
    + ". Default: as they are.",
)
@click.option("--shard-size", type=FileSize(), metavar="SIZE", help="Largest size of a file, default 5GB.")
@click.option("--ema", is_flag=True, help="Of a run: the moving average of its weights (train.ema_decay).")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def export(
    model: str, form: str, out: str, dtype: str | None, shard_size: int | None, ema: bool, as_json: bool
) -> None:
    """Write weights as a Hugging Face folder, as a GGUF file for llama.cpp, or the adapter of a run for PEFT.

    Adapters are merged but for --to peft. Holds one tensor in memory at a time. config.json is written last: a folder
    without it is no model yet. A GGUF file has its name once it is whole.
    """
    dtype = dtype and dtype_of(form, dtype)
    with weights_errors():
        from launchyard.model.text.companions import TOKENIZER
        from launchyard.model.weights.load import open_weights
        from launchyard.model.weights.source import find_source
        from launchyard.storage.files import exists, listdir, size, usage

        place = find_model(model)
        source = find_source(place)
        config, weights = open_weights(place, averaged=ema)
        is_file = form == "gguf" and out.endswith(_GGUF)
        if is_file and exists(out):
            raise UserError(f"--out {out} is there already; name a new file, so that nothing is overwritten")
        if not is_file and listdir(out):
            raise UserError(f"--out {out} is not empty; name a new folder, so that nothing is overwritten")
        with transfer_bar(f"export to {out}", sys.stderr) as on_progress:
            written = FORMS[form](Export(source, config, weights, out, dtype, shard_size), on_progress)
        files = [] if is_file else sorted(listdir(out))
        n_bytes = size(out) if is_file else usage(out)[1]
    facts = {
        "out": out,
        "form": form,
        "files": files,
        "bytes": n_bytes,
        "n_params": written.n_params,
        "tokenizer": source.tokenizer,
        "notes": written.notes,
    }
    if as_json:
        click.echo(json_text(facts))
        return
    for note in written.notes:
        click.echo(note, err=True)
    listed = f" in {', '.join(files)}" if files else ""
    click.echo(f"{out}: {written.n_params:,} parameters{listed}")
    if TOKENIZER not in source.companions():
        click.echo("there was no tokenizer beside the weights; add a tokenizer.json before text is wanted", err=True)
