"""Problems of the recipe's section `profile`: steps that are not made, ranks that do not exist. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from launchyard.training.batching import count_steps
from launchyard.training.recipe import Recipe
from launchyard.training.spec import DataSpec


def profile_problems(recipe: Recipe, data: DataSpec, world_size: int) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with it), of each."""
    wanted = recipe.profile
    if wanted is None:
        return
    with contextlib.suppress(ValueError):  # a problem of its own: the length is unknown
        max_steps = count_steps(recipe, data)
        if (last := max(last for _, last in wanted.windows)) > max_steps:
            yield (
                "profile.steps",
                f"step {last} is never made: the run has {max_steps}; name steps from 1 to {max_steps}",
            )
    missing = [] if wanted.ranks == "all" else [rank for rank in wanted.ranks if rank >= world_size]
    if missing:
        ranks = f"{', '.join(map(str, missing))}: there {'is' if world_size == 1 else 'are'} {world_size}"
        has = f"{ranks} worker{'s' * (world_size > 1)}, with ranks from 0 to {world_size - 1}"
        yield "profile.ranks", f"{has}; name those, or all"
