"""The user's file in a run directory, and the modules beside it: written at the launch, read by every worker as they
were then.
"""

from __future__ import annotations

import os

from launchyard.run import layout
from launchyard.run.frozen import ChangedError
from launchyard.run.rundir import RunDir
from launchyard.training.own.load import OwnCode, load_own_code
from launchyard.training.own.source import OwnSource


def frozen_name(source: OwnSource) -> str:
    """Where a run keeps this file, in its directory."""
    return layout.own_code(os.path.basename(source.name), source.digest)


def is_frozen(code: str) -> bool:
    """Is this value of the recipe's `code` a file in the run's own directory?"""
    return code.startswith(f"{layout.OWN_CODE_FOLDER}/")


def title_of(code: str) -> str:
    """The name that the user gave to a file that a run keeps."""
    stem, _, _ = os.path.basename(code).removesuffix(".py").rpartition("-")
    return f"{stem}.py"


def write_frozen(run: RunDir, source: OwnSource) -> None:
    """The file itself comes last."""
    code = frozen_name(source)
    for name, raw in source.modules:
        run.write_text(f"{layout.own_modules(code)}/{name}", raw.decode())
    run.write_text(code, source.raw.decode())


def read_frozen(run: RunDir, code: str) -> OwnSource:
    """FileNotFoundError without the file, ChangedError if it or a module of it is another than it was."""
    folder = layout.own_modules(code)
    modules = tuple((name, run.read_bytes(f"{folder}/{name}")) for name in run.listdir(folder))
    source = OwnSource(title_of(code), run.read_bytes(code), modules)
    if frozen_name(source) != code:
        what = f"{run.path(code)}{' or a module of it' if modules else ''} was changed after the launch"
        raise ChangedError(what, hint="put it back; new code goes on the command line of a resume, as code=FILE")
    return source


def open_own_code(run: RunDir, code: str | None) -> OwnCode | None:
    """The functions of a run; None if its recipe names no file."""
    return None if code is None else load_own_code(read_frozen(run, code))
