"""`launch schema`: the JSON Schema of recipes and cluster files, for editors."""

from __future__ import annotations

import json
from typing import Any

import click
from pydantic import BaseModel

from launchyard.launcher.recipe.hints import UNION_BOUNDS

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def schema_text(kind: str) -> str:
    """The schema of a `recipe` or a `cluster` file as JSON text."""
    return json.dumps({"$schema": DRAFT, **_of(kind)}, indent=1, ensure_ascii=False) + "\n"


def _of(kind: str) -> dict[str, Any]:
    if kind == "cluster":
        from launchyard.launcher.backends.cluster import Cluster

        return _without_titles(Cluster)
    from launchyard.training.recipe import Recipe

    schema = _without_titles(Recipe)
    extends = {"type": "string", "description": "Recipe that this one changes: a path, a bundled name or a URL."}
    schema["properties"] = {"extends": extends, **schema["properties"]}
    # A recipe that extends another may leave out anything, also inside its sections.
    schema["required"] = []
    for section in schema["$defs"].values():
        section.pop("required", None)
    return schema


def _without_titles(model: type[BaseModel]) -> dict[str, Any]:
    """pydantic titles every key with its own name; editors show that as noise."""

    def strip(node: Any, *, names: bool = False) -> Any:
        if isinstance(node, dict):
            return {
                key if names else UNION_BOUNDS.get(key, key): strip(value, names=key in ("properties", "$defs"))
                for key, value in node.items()
                if names or key != "title"
            }
        return [strip(item) for item in node] if isinstance(node, list) else node

    found: dict[str, Any] = strip(model.model_json_schema())
    return found


@click.command()
@click.argument("kind", type=click.Choice(["recipe", "cluster"]), default="recipe")
def schema(kind: str) -> None:
    """Print the JSON Schema of a recipe (or a cluster file), for editors.

    First line of a recipe of yours: # yaml-language-server: $schema=recipe.schema.json
    """
    click.echo(schema_text(kind), nl=False)
