"""Questions in a terminal, each of which a flag can answer beforehand. Knows no recipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import click

from launchyard.errors import LaunchError, UserError

T = TypeVar("T")


@dataclass
class Questions:
    """Asks where there is a terminal, unless `yes` takes every default. Collects what is missing where it may not."""

    yes: bool
    missing: list[str] = field(default_factory=list)

    @property
    def asks(self) -> bool:
        return not self.yes and sys.stdin.isatty()

    def ask(
        self, flag: str, text: str, check: Callable[[str], T], *, given: str | None = None, default: str | None = None
    ) -> T:
        """A checked answer: of the flag, of a person, or the default. UserError that names the flag without one."""
        if given is not None:
            return self._checked(flag, given, check)
        if self.asks:
            while True:
                typed = click.prompt(text, default=default, type=str, err=True)
                try:
                    return check(typed)
                except (LaunchError, ValueError) as error:
                    click.echo(f"  {error}", err=True)
                    if hint := getattr(error, "hint", None):
                        click.echo(f"  {hint}", err=True)
        if default is None:
            raise UserError(f"{flag} is missing: {text}", hint="give it, or run this in a terminal, which asks")
        return self._checked(flag, default, check)

    def choose(self, flag: str, text: str, options: Sequence[tuple[str, str]], *, given: str | None = None) -> str:
        """One of (name, description) by its name or its number; the first is the default."""
        names = [name for name, _ in options]
        if given is None and self.asks and len(options) > 1:
            click.echo(f"{text}:", err=True)
            for number, (name, said) in enumerate(options, 1):
                click.echo(f"  {number}  {name:<12} {said}", err=True)

        def check(typed: str) -> str:
            if typed.isdigit() and 0 < int(typed) <= len(names):
                return names[int(typed) - 1]
            if typed not in names:
                raise UserError(f"{typed!r} is none of: {', '.join(names)}")
            return typed

        if given is None and len(options) == 1:
            return names[0]
        return self.ask(flag, "number or name" if self.asks else text, check, given=given, default=names[0])

    def _checked(self, flag: str, value: str, check: Callable[[str], T]) -> T:
        try:
            return check(value)
        except LaunchError:
            raise
        except ValueError as error:
            raise UserError(f"{flag}: {error}") from error
