"""`--style` and `--template`: by what a chat is written, where that is not the model's own template."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from launchyard.errors import UserError
from launchyard.launcher.cli.paths import path_or_url

if TYPE_CHECKING:
    from launchyard.model.loaded import LoadedModel
    from launchyard.model.text.chat import Chat

_Command = TypeVar("_Command", bound=Callable[..., object])


def template_options(command: _Command) -> _Command:
    options = (
        click.option("--style", metavar="NAME", help="A prompt style; default: the model's chat template."),
        click.option("--template", type=path_or_url, metavar="FILE", help="Another chat template, in Jinja."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def chat_of(model: LoadedModel, style: str | None, template: str | None) -> Chat:
    """UserError if the model has no template, and none is given."""
    from launchyard.model.text.chat import Chat
    from launchyard.storage.files import read_text

    try:
        text = None if template is None else read_text(template)
        return Chat(model.tokenizer, style=style, template=text)
    except ValueError as error:
        hint = "--style NAME takes one of these styles, --template FILE a chat template in Jinja"
        raise UserError(str(error), hint=hint if "no chat template" in str(error) else None) from error
