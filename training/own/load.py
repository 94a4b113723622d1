"""A user's file as functions that can be called. Runs the file and its modules; knows no step, and no torch."""

from __future__ import annotations

import json
import linecache
import sys
import traceback
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from launchyard.training.own.contract import CONTRACTS, Described, describe_code
from launchyard.training.own.modules import install
from launchyard.training.own.source import OwnSource, path_of
from launchyard.training.own.values import StopTraining

MODULE_NAME = "launchyard_own_code"


class OwnCodeError(Exception):
    """A function of the user's file failed, or has returned what it may not. `fatal`: another try would do the same."""

    fatal = False


class WrongReturnError(ValueError):
    """A function returned what its documentation does not allow."""


@dataclass(frozen=True)
class OwnCode:
    """The functions of a file, called by name with those values alone that they ask for. files: with its modules."""

    name: str
    described: Described
    functions: Mapping[str, Callable[..., object]]
    files: frozenset[str] = frozenset()

    def has(self, function: str) -> bool:
        return function in self.functions

    def call(self, function: str, /, **values: object) -> object:
        """What it returns. OwnCodeError names the file and the line of an error in it; StopTraining passes."""
        wanted = self.described.functions[function]
        try:
            return self.functions[function](**{name: values[name] for name in wanted})
        except StopTraining:
            raise
        except Exception as error:
            raise self.failed(function, error) from error

    def failed(self, function: str, error: Exception) -> OwnCodeError:
        """The error of a run whose function has failed so."""
        where = _place(error, self.files | {self.name}) or self.name
        return OwnCodeError(f"{function} of {where}: {type(error).__name__}: {error}")


def load_own_code(source: OwnSource) -> OwnCode:
    """Runs a file. ValueError if it is none, or if it cannot be run."""
    name = source.name
    described = describe_code(source.raw, name)
    install(source.modules)
    files = frozenset((name, *(path_of(file) for file, _ in source.modules)))
    module = types.ModuleType(MODULE_NAME)
    module.__file__ = name
    sys.modules[MODULE_NAME] = module  # dataclasses ask for the module of their class
    text = source.raw.decode()
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)  # for the lines of a traceback
    try:
        exec(compile(source.raw, name, "exec"), module.__dict__)  # noqa: S102  the user's own file, on their machine
    except Exception as error:
        raise ValueError(f"{_place(error, files) or f'{name}:1'}: {type(error).__name__}: {error}") from error
    functions = {key: getattr(module, key) for key in described.functions if key in CONTRACTS}
    return OwnCode(name, described, functions, files)


def _place(error: Exception, files: frozenset[str]) -> str | None:
    """The deepest line of the user's that an error has passed."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None


def source_json(source: OwnSource) -> str:
    """For a process that tries to read it."""
    return json.dumps([source.name, source.raw.decode(), [[name, raw.decode()] for name, raw in source.modules]])


def _from_json(text: str) -> OwnSource:
    name, raw, modules = json.loads(text)
    return OwnSource(name, raw.encode(), tuple((file, content.encode()) for file, content in modules))


if __name__ == "__main__":  # python -m …: runs the file on standard input, to see if it can be run
    try:
        load_own_code(_from_json(sys.stdin.read()))
    except ValueError as problem:
        print(problem, file=sys.stderr)
        sys.exit(1)
