"""Are the prompts of prepared rows trained for, as the recipe wants it?"""

from __future__ import annotations

from collections.abc import Sequence

from launchyard.errors import UserError
from launchyard.training.data.index import read_dataset
from launchyard.training.sections.data import DataConfig


def check_prompts(key: str, sources: Sequence[str], data: DataConfig) -> None:
    """UserError for prepared rows whose prompts are trained for where the recipe says that they are not, or not so."""
    for source in sources:
        rows = made.instruct if (made := read_dataset(source)) else None
        if rows is not None and rows.kind == "instruct" and rows.mask_prompt != data.mask_prompt:
            mine, theirs = (str(value).lower() for value in (data.mask_prompt, rows.mask_prompt))
            raise UserError(
                f"data.mask_prompt is {mine}, but {key}, {source}, was prepared with {theirs}",
                hint=f"data.mask_prompt={theirs}, or prepare it again",
            )
