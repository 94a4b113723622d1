"""The copy of the code that a job runs, unaffected by later changes to the checkout: a folder, or a zip.

A copy has many small files, so one is kept in the user's cache for each state of the code, and runs have links to it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import os
import shutil
import sys
from pathlib import Path

from launchyard.errors import UserError
from launchyard.host.folders import job_folder, log_folder, only_ours, user_cache_folder
from launchyard.run import own_code
from launchyard.run.layout import JOB_CODE
from launchyard.run.rundir import RunDir

KEPT_CODE = "code"  # in the user's cache
KEPT_COPIES = 4  # the newest; a run whose copy is not among them any more has its files still


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
        _link_code(fresh)
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


def _link_code(folder: Path) -> None:
    """Fills a folder with links to the copy that is kept, or with a copy of its own where links cannot be had."""
    name = own_code.PACKAGE.name
    try:
        shutil.copytree(_kept_copy() / name, folder / name, copy_function=os.link)
    except OSError:  # another file system, or one without links; a cache that is full, or not ours alone
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(own_code.PACKAGE, folder / name, ignore=_of_other_pythons)


def _kept_copy() -> Path:
    """The copy of the present code in the user's cache, made if there is none that is whole."""
    kept = user_cache_folder(KEPT_CODE)
    kept.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not only_ours(kept):
        raise PermissionError(errno.EPERM, "others may write to it", kept)
    folder = kept / _state_of_code()
    if folder.is_dir():
        if own_code.digest(folder) == own_code.digest():
            os.utime(folder)
            return folder
        shutil.rmtree(folder)
    fresh = folder.with_name(f"{folder.name}.{os.getpid()}.new")
    try:
        shutil.copytree(own_code.PACKAGE, fresh / own_code.PACKAGE.name, ignore=_of_other_pythons, copy_function=_lock)
        fresh.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another launch was faster
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    for old in sorted(kept.iterdir(), key=lambda path: path.stat().st_mtime)[:-KEPT_COPIES]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _lock(source: str, target: str) -> None:
    """Copies a file for all runs of this code: none may be written to in its place."""
    shutil.copy2(source, target)
    os.chmod(target, 0o444)


def _state_of_code() -> str:
    """The same as long as no file of the package changes, for one Python."""
    found = hashlib.sha256(str(sys.implementation.cache_tag).encode())
    for name, path in own_code.own_files():
        facts = os.stat(path)
        found.update(f"{name} {facts.st_size} {facts.st_mtime_ns} {path}\n".encode())
    return found.hexdigest()[:16]


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
