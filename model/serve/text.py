"""The text of what the engine writes, as far as it is sure. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence

from launchyard.model.serve.requests import Ended, Generation
from launchyard.model.text.tokenizer import StopStrings, Tokenizer


class GrowingText:
    """The text of one generation, given once: never half a character, and nothing from a stop string on.

    ended: None until the last piece has been given. `found_stop` says that its engine may cancel the generation.
    """

    def __init__(
        self, generation: Generation, tokenizer: Tokenizer, stops: Sequence[str] = (), *, skip_special: bool = True
    ) -> None:
        self.generation = generation
        self.n_new = 0  # tokens whose text was taken
        self.ended: Ended | None = None
        self._stops = StopStrings(stops)
        self._stream = tokenizer.stream(generation.request.prompt, skip_special=skip_special)

    @property
    def found_stop(self) -> bool:
        return self._stops.found

    def take(self) -> str:
        """The text that has become sure since the last call."""
        if self.ended is not None:
            return ""
        pieces = []
        while self.n_new < len(self.generation.new) and not self.found_stop:
            token = self.generation.new[self.n_new]
            self.n_new += 1
            pieces.append(self._stops.add(self._stream.add(token)))
        if not self.found_stop and self.generation.ended is not None:
            pieces.append(self._stops.add(self._stream.flush()))
            pieces.append("" if self.found_stop else self._stops.flush())
            self.ended = self.generation.ended
        if self.found_stop:
            self.ended = "stop"
        return "".join(pieces)
