"""The type of options and arguments that are paths or URLs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from launchyard.errors import user_errors
from launchyard.storage.files import typed_path

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class PathOrUrl(click.ParamType[str]):
    """A place as a person types it: ~ is the home, variables are a UserError. Shells complete it as a file."""

    name = "path or URL"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Does not look there."""
        with user_errors():
            return typed_path(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]


path_or_url = PathOrUrl()
