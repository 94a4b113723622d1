"""Where a MODEL of the command line lies, and its errors without a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from launchyard.errors import LaunchError, UserError, user_errors
from launchyard.launcher.runs.models import find_model as find_model

MODEL_HELP = (
    "MODEL is a Hugging Face folder, a GGUF file, a checkpoint or a run: a path, a URL, the id or name of a run "
    "(RUN@best, RUN@last and RUN@STEP are its checkpoints), or a model of the Hugging Face hub that `launch download` "
    "got: ORG/NAME[@REVISION]. With an adapter of PEFT it is BASE+ADAPTER, or the adapter's folder alone, where its "
    "base still lies where it says."
)


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
