"""The user's file in a run directory: written at the launch, and read by every worker as it was then."""

from __future__ import annotations

import hashlib
import os

from launchyard.run import layout
from launchyard.run.frozen import ChangedError
from launchyard.run.rundir import RunDir
from launchyard.training.own.load import OwnCode, load_own_code


def frozen_name(path: str, raw: bytes) -> str:
    """Where a run keeps this file, in its directory."""
    return layout.own_code(os.path.basename(path), _digest(raw))


def is_frozen(code: str) -> bool:
    """Is this value of the recipe's `code` a file in the run's own directory?"""
    return code.startswith(f"{layout.OWN_CODE_FOLDER}/")


def title_of(code: str) -> str:
    """The name that the user gave to a file that a run keeps."""
    stem, _, _ = os.path.basename(code).removesuffix(".py").rpartition("-")
    return f"{stem}.py"


def read_frozen(run: RunDir, code: str) -> bytes:
    """FileNotFoundError without the file, ChangedError if it is another than it was."""
    raw = run.read_bytes(code)
    if layout.own_code(title_of(code), _digest(raw)) != code:
        hint = "put it back; new code goes on the command line of a resume, as code=FILE"
        raise ChangedError(f"{run.path(code)} was changed after the launch", hint=hint)
    return raw


def open_own_code(run: RunDir, code: str | None) -> OwnCode | None:
    """The functions of a run; None if its recipe names no file."""
    return None if code is None else load_own_code(read_frozen(run, code), title_of(code))


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:12]
