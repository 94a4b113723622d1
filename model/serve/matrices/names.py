"""What the matrices of a loaded model may be, by name. Light."""

from __future__ import annotations

from typing import Literal, get_args

WeightForm = Literal["auto", "fp32", "bf16", "int8", "int4", "nf4", "fp8"]
WEIGHT_FORMS: tuple[WeightForm, ...] = get_args(WeightForm)


def checked_form(name: str) -> WeightForm:
    """ValueError for another name."""
    for form in WEIGHT_FORMS:
        if form == name:
            return form
    raise ValueError(f"weights is {name!r}; use {', '.join(WEIGHT_FORMS[:-1])} or {WEIGHT_FORMS[-1]}")
