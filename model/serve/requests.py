"""What is asked of the engine, and what has come of it so far. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor

from launchyard.model.serve.sampling import Sampling

# The end of a text: at the end of text or a stop string, at max_new_tokens, because the context is full, or because
# nobody waits for it any more.
Ended = Literal["stop", "length", "context", "cancelled"]


class Constraint(Protocol):
    """What a text must look like; of one text."""

    def allowed(self) -> Tensor:
        """(V,) bool: tokens that may come next."""
        ...

    def accept(self, token: int) -> None:
        """The next token is this one."""
        ...

    @property
    def is_whole(self) -> bool:
        """True if nothing may follow."""
        ...


class Drafter(Protocol):
    """Guesses the next tokens, cheaply; a guess costs time where it is wrong, and never changes a text."""

    def guess(self, context: Sequence[int], text: Generation, uniform: Sequence[float]) -> list[int]:
        """At most len(uniform) tokens behind what the model sees; uniform: the numbers by which they will be drawn."""
        ...


@dataclass(frozen=True)
class Request:
    """A text to write behind the ids of a prompt.

    It ends after `max_new_tokens`, before a token of `stop_ids`, and where the context is full; `slides`: there it goes
    on with the last half of the context. seed: the same draws the same text, whatever else is written beside it, to
    rounding; None: a new one. n_alternatives: of each new token its log-probability is kept, and so many of the
    likeliest; None: nothing. prompt_odds: of the tokens of the prompt, too.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] = frozenset()
    seed: int | None = None
    slides: bool = False
    n_alternatives: int | None = None
    prompt_odds: bool = False
    constraint: Constraint | None = None
    drafter: Drafter | None = None
    n_guesses: int = 4

    def __post_init__(self) -> None:
        if self.max_new_tokens < 0:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 0")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must lie within 2^63")
        if not self.prompt:
            raise ValueError("the prompt is empty; a model needs at least one token to go on from")


@dataclass(frozen=True)
class TokenOdds:
    """Natural logarithms of probabilities by the model itself, before temperature, penalties and cuts."""

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...]  # tokens and theirs, from the likeliest on


@dataclass(eq=False)
class Generation:
    """A text as it grows. `odds`: of `new`; `prompt_odds`: of the prompt but its first token; if they are asked for."""

    request: Request
    new: list[int] = field(default_factory=list)
    odds: list[TokenOdds] = field(default_factory=list)
    prompt_odds: list[TokenOdds] = field(default_factory=list)
    ended: Ended | None = None
    n_reused: int = 0  # tokens of the prompt that lay in a cache already
    n_guessed: int = 0
    n_guessed_right: int = 0
