"""How tokens are drawn where nobody says: what generation_config.json has on it. Knows no model."""

from __future__ import annotations

from typing import TypedDict, cast

from launchyard.model.serve.sampling import Sampling
from launchyard.model.text.companions import GENERATION, Companions, json_companion


class SamplingRules(TypedDict, total=False):
    """By the names of Sampling."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float


def sampling_rules(companions: Companions) -> SamplingRules:
    """ValueError names a rule that makes no sense.

    A file that asks for the likeliest tokens says nothing but how repetitions count.
    """
    config = json_companion(companions, GENERATION)
    keys = ["repetition_penalty"] if config.get("do_sample") is False else list(SamplingRules.__annotations__)
    found: dict[str, float] = {}
    for key in keys:
        value = config.get(key)
        if value is None or (value == 0 and key in ("top_k", "min_p")):  # their spellings of no such rule
            continue
        if isinstance(value, bool) or not isinstance(value, int if key == "top_k" else int | float):
            raise ValueError(f"{GENERATION}: {key} is {value!r}, no {'whole ' if key == 'top_k' else ''}number")
        found[key] = value
    rules = cast("SamplingRules", found)
    try:
        Sampling(**rules)
    except ValueError as error:
        raise ValueError(f"{GENERATION}: {error}") from error
    return rules
