"""`launch export`: weights in the form of another program. torch is imported in a body only."""

from __future__ import annotations

import click

from launchyard.errors import UserError
from launchyard.launcher.cli.completion import complete_run
from launchyard.launcher.cli.model import MODEL_HELP, find_model, weights_errors
from launchyard.launcher.cli.paths import path_or_url
from launchyard.launcher.format import json_text


@click.command(epilog=MODEL_HELP)
@click.argument("model", metavar="MODEL", shell_complete=complete_run)
@click.option("--to", "form", type=click.Choice(["hf"]), default="hf", show_default=True, help="Form of the export.")
@click.option("--out", type=path_or_url, required=True, metavar="DIR", help="Folder or URL to write; new or empty.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Element type of the tensors; default: as they are.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def export(model: str, form: str, out: str, dtype: str | None, as_json: bool) -> None:
    """Write weights as a Hugging Face folder: safetensors, config.json and tokenizer."""
    with weights_errors():
        import torch

        from launchyard.model.cost import n_params
        from launchyard.model.weights.hf_export import save_hf
        from launchyard.model.weights.load import open_weights
        from launchyard.model.weights.source import find_source
        from launchyard.storage.files import listdir

        source = find_model(model)
        tokenizer = find_source(source).tokenizer
        config, weights = open_weights(source)
        if listdir(out):
            raise UserError(f"--out {out} is not empty; name a new folder, so that nothing is overwritten")
        save_hf(weights, config, out, tokenizer_file=tokenizer, dtype=getattr(torch, dtype) if dtype else None)
        files = sorted(listdir(out))
    if as_json:
        facts = {"out": out, "form": form, "files": files, "n_params": n_params(config), "tokenizer": tokenizer}
        click.echo(json_text(facts))
        return
    click.echo(f"{out}: {n_params(config):,} parameters in {', '.join(files)}")
    if tokenizer is None:
        click.echo("there was no tokenizer beside the weights; add a tokenizer.json before text is wanted", err=True)
