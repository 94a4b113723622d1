"""The error tree of the launcher: messages that replace a traceback, each with its exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USER = 2
EXIT_STOPPED = 75
EXIT_FATAL = 78
EXIT_INTERRUPTED = 130


class LaunchError(Exception):
    """Something went wrong that a person can act on. Printed without a traceback; exit code 1."""

    exit_code = EXIT_FAILED

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class NothingRunsError(LaunchError):
    """A job could not be started, and certainly does not run: files made for it can be removed. Exit code 1."""


class UserError(LaunchError):
    """The user's mistake: names value, location, allowed values and a fix. Exit code 2; nothing was created."""

    exit_code = EXIT_USER


class StartedError(KeyboardInterrupt):
    """Ctrl-C while a run was handed over to its job: it has been started all the same, and goes on."""

    def __init__(self, run_id: str, job: object) -> None:
        super().__init__(f"{run_id} had been started by then; to end it: launch stop {run_id}")
        self.job = job


class RecipeErrors(UserError):
    """All that is wrong with a recipe or a cluster file, at once."""

    def __init__(self, problems: list[str], *, hint: str | None = None) -> None:
        super().__init__("\n".join(problems), hint=hint)
        self.problems = problems


class MissingDataError(UserError):
    """The data of a recipe is not there yet: all else can be planned. `source` is the place that was looked at."""

    def __init__(self, message: str, *, source: str) -> None:
        super().__init__(message)
        self.source = source


def os_error_text(error: OSError) -> str:
    """Returns `FILE: what the system said` for Python's `[Errno 28] What: 'FILE'`; other messages as they are."""
    if not str(error).startswith("[Errno"):
        return str(error)
    problem = (error.strerror or str(error)).lower()
    return f"{error.filename}: {problem}" if error.filename else problem


@contextmanager
def user_errors(where: str = "") -> Iterator[None]:
    """Turn the ValueError family and file errors that model and training raise for users into UserError.

    `where`, a key or an option, is put before the message of a ValueError.
    """
    try:
        yield
    except LaunchError:
        raise
    except FileNotFoundError as error:
        named = f": {error.filename}" if error.filename else ""
        raise UserError(f"no such file or folder{named}" if named else str(error)) from error
    except OSError as error:
        from launchyard.storage.errors import RefusedError, StoreError

        if isinstance(error, StoreError):  # its message is complete
            raise (UserError if isinstance(error, RefusedError) else LaunchError)(str(error)) from error
        if isinstance(error, IsADirectoryError):
            raise UserError(f"this is a folder, where a file is needed: {error.filename or error}") from error
        if not isinstance(error, PermissionError):
            raise
        from launchyard.host.folders import folder_advice

        named = error.filename or str(error)
        raise UserError(f"permission denied: {named}", hint=folder_advice(error.filename)) from error
    except ValueError as error:
        raise UserError(f"{where}: {error}" if where else str(error)) from error
