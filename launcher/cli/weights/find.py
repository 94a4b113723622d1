"""Where a MODEL of the command line lies, and its errors without a traceback."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from launchyard.errors import LaunchError, UserError, user_errors

MODEL_HELP = (
    "MODEL is a Hugging Face folder, a GGUF file, a checkpoint or a run: a path, a URL, the id or name of a run, or a "
    "model of the Hugging Face hub that `launch download` got: ORG/NAME[@REVISION]. With an adapter of PEFT it is "
    "BASE+ADAPTER, or the adapter's folder alone, where its base still lies where it says."
)


def find_model(model: str) -> str:
    """The place of MODEL: a path or URL as it is, else the run of that id or name, else the model of the hub."""
    from launchyard.model.weights.source import base_and_adapter, find_source
    from launchyard.storage.hub_cache import find_downloaded, hub_advice

    with user_errors():
        parts = base_and_adapter(model)
    if parts is not None:
        return f"{find_model(parts[0])}+{parts[1]}"
    if "://" in model or os.sep in model:
        return model  # find_source knows names of the hub
    if os.path.exists(model):
        try:
            find_source(model)
        except FileNotFoundError:
            pass  # something that happens to be named like a run
        else:
            return model
    from launchyard.launcher.runs.find import find

    try:
        return find(model).url
    except UserError as error:
        if (downloaded := find_downloaded(model)) is not None:
            return downloaded
        advice = "" if "did you mean" in str(error) else hub_advice(model)
        raise UserError(str(error), hint=advice or error.hint) from error


@contextmanager
def weights_errors() -> Iterator[None]:
    """Turns errors of weights into errors without a traceback."""
    try:
        with user_errors():
            from launchyard.storage.errors import CorruptError

            yield
    except CorruptError as error:
        raise LaunchError(
            str(error), hint="`launch checkpoints RUN --verify` shows which checkpoints are intact"
        ) from error
    except UserError as error:
        from launchyard.storage.hub_cache import origin_in_cache

        if error.hint is None and (origin := origin_in_cache(str(error))):  # of another program, or the tokenizer only
            got = f"`launch download {origin.repo} --revision {origin.revision}`"
            raise UserError(str(error), hint=f"{got} gets what is missing") from error
        raise
