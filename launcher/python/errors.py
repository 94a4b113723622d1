"""Errors of a launch in the words of a Python call. Knows no recipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from launchyard.errors import RecipeErrors, UserError, user_errors

_WORDS = {"on the command line": "in overrides", "--run-url": "run_url"}


@contextmanager
def python_errors() -> Iterator[None]:
    """Turns what the product raises for a user's mistake into UserError, and options into names of arguments."""
    try:
        with user_errors():
            yield
    except RecipeErrors as error:
        raise RecipeErrors([_in_python(problem) for problem in error.problems], hint=error.hint) from None
    except UserError as error:
        if (text := _in_python(str(error))) == str(error):
            raise
        raise UserError(text, hint=error.hint) from None


def _in_python(text: str) -> str:
    for theirs, ours in _WORDS.items():
        text = text.replace(theirs, ours)
    return text
