"""A user's file as functions that can be called. Runs the file; knows no step, and no torch."""

from __future__ import annotations

import linecache
import sys
import traceback
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from launchyard.training.own.contract import CONTRACTS, Described, describe_code
from launchyard.training.own.values import StopTraining

MODULE_NAME = "launchyard_own_code"


class OwnCodeError(Exception):
    """A function of the user's file failed, or has returned what it may not. `fatal`: another try would do the same."""

    fatal = False


class WrongReturnError(ValueError):
    """A function returned what its documentation does not allow."""


@dataclass(frozen=True)
class OwnCode:
    """The functions of a file, called by name with those values alone that they ask for."""

    name: str
    described: Described
    functions: Mapping[str, Callable[..., object]]

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
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == self.name]
        where = f"{self.name}:{lines[-1]}" if lines else self.name
        return OwnCodeError(f"{function} of {where}: {type(error).__name__}: {error}")


def load_own_code(source: bytes, name: str) -> OwnCode:
    """Runs a file. ValueError if it is none, or if it cannot be run."""
    described = describe_code(source, name)
    module = types.ModuleType(MODULE_NAME)
    module.__file__ = name
    sys.modules[MODULE_NAME] = module  # dataclasses ask for the module of their class
    text = source.decode()
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)  # for the lines of a traceback
    try:
        exec(compile(source, name, "exec"), module.__dict__)  # noqa: S102  the user's own file, on the user's machine
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == name]
        raise ValueError(f"{name}:{lines[-1] if lines else 1}: {type(error).__name__}: {error}") from error
    return OwnCode(name, described, {key: getattr(module, key) for key in described.functions if key in CONTRACTS})


if __name__ == "__main__":  # python -m …: `load.py NAME` runs the file on standard input, to see if it can be run
    try:
        load_own_code(sys.stdin.buffer.read(), sys.argv[1])
    except ValueError as problem:
        print(problem, file=sys.stderr)
        sys.exit(1)
