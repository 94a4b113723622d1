"""The copy of the code that a job runs, unaffected by later changes to the checkout: a folder, or a zip."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import sys
from pathlib import Path

from launchyard.errors import UserError
from launchyard.host.folders import job_folder, log_folder
from launchyard.run import own_code
from launchyard.run.layout import JOB_CODE
from launchyard.run.rundir import RunDir


def keep_code(run: RunDir) -> Path | None:
    """Copies the code that this process runs, so that all attempts of a job run the same code.

    Returns the folder that must come first on the path of the job. None for an installed package, which does not change
    under a job. UserError if it cannot be written.
    """
    folder = _code_folder(run)
    if own_code.is_installed():
        shutil.rmtree(folder, ignore_errors=True)  # of a checkout that an earlier job was sent from
        return None
    if folder.is_dir() and own_code.digest(folder) == own_code.digest():
        return folder  # a job that is just being started may be reading it
    _compile()
    fresh, old = (folder.with_name(f"{folder.name}.{os.getpid()}.{suffix}") for suffix in ("new", "old"))
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copytree(own_code.PACKAGE, fresh / own_code.PACKAGE.name, ignore=_of_other_pythons)
        with contextlib.suppress(FileNotFoundError):
            folder.rename(old)
        fresh.rename(folder)
    except OSError as error:
        reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror  # of the first of its files
        raise UserError(f"{folder}: the code cannot be copied there: {reason}") from error
    finally:
        for rest in (fresh, old):
            shutil.rmtree(rest, ignore_errors=True)
    return folder


def drop_code(run: RunDir) -> None:
    """Remove the copy, of a run whose first job was refused."""
    folder = _code_folder(run)
    shutil.rmtree(folder, ignore_errors=True)
    if not run.local:
        with contextlib.suppress(OSError):
            folder.parent.rmdir()


def _code_folder(run: RunDir) -> Path:
    return Path(job_folder(run.url, log_folder())) / JOB_CODE


def _compile() -> None:
    """Compiles the sources in place, once, and not in each copy; does nothing where bytecode must not be written."""
    import compileall

    if not sys.dont_write_bytecode:
        for child in own_code.PACKAGE.iterdir():  # it follows no links
            if child.is_dir():
                compileall.compile_dir(child, quiet=2)


def _of_other_pythons(folder: str, names: list[str]) -> list[str]:
    """Compiled files are copied with the times of their sources, by which Python knows that they are good."""
    if os.path.basename(folder) != "__pycache__":
        return []
    ending = os.path.basename(importlib.util.cache_from_source("x.py"))[1:]
    return [name for name in names if not name.endswith(ending)]


def pack_code() -> bytes | None:
    """The same as a zip, for nodes that share no folder with us. None for an installed package: nodes have theirs.

    Equal code makes equal bytes.
    """
    import io
    import zipfile

    if own_code.is_installed():
        return None
    found = io.BytesIO()
    with zipfile.ZipFile(found, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in own_code.own_files():
            entry = zipfile.ZipInfo(name)  # of 1980: no time of ours
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, Path(path).read_bytes(), zipfile.ZIP_DEFLATED)
    return found.getvalue()
