"""Text in colours by how certain a model was of it. Knows no model and no terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from launchyard.model.serve.text import GrowingText

RESET = "\x1b[0m"
# Of the 256 colours of terminals, from red to green: of odds below 0.1, below 0.2 …
_COLOURS = (196, 202, 208, 214, 220, 226, 190, 154, 118, 46)


def colour_of(odds: float) -> int:
    return _COLOURS[min(int(odds * len(_COLOURS)), len(_COLOURS) - 1)]


def coloured(written: Iterator[tuple[int, str, GrowingText]]) -> Iterator[tuple[int, str, GrowingText]]:
    """The same pieces; one of several tokens has the colour of the least certain.

    The odds are those of the model itself, before temperature, penalties and cuts.
    """
    told: dict[int, int] = {}  # tokens whose text was given
    for number, piece, text in written:
        if not piece:
            yield number, piece, text
            continue
        tokens = text.generation.odds[told.get(number, 0) : text.n_new]
        told[number] = text.n_new
        odds = math.exp(min((token.logprob for token in tokens), default=0.0))
        yield number, click.style(piece, fg=colour_of(odds)), text
