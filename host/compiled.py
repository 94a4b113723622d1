"""The folder in which torch's compiler keeps what it has made, so that the next start of the same blocks need not.

Its own choice is a name under the machine's temporary folder that anybody can take first, and code is run from it.
"""

from __future__ import annotations

from launchyard.host.environment import set_unless_told, variable
from launchyard.host.folders import only_ours, user_cache_folder

COMPILED_FOLDER = "TORCHINDUCTOR_CACHE_DIR"


def keep_compiled_code() -> str:
    """Has this process and its children keep it in the user's cache, or in the folder that the variable names already.

    Returns the folder. Raises ValueError if it cannot be made, or if others may write to the one of the cache.
    """
    if told := variable(COMPILED_FOLDER):
        return told
    folder = user_cache_folder("compiled")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{folder}: {error.strerror}, and compiled code is kept there; set {COMPILED_FOLDER} to a folder of yours"
        ) from error
    if not only_ours(folder):
        raise ValueError(
            f"{folder}: others may write to it, and code is run from it; chmod 700 it if it is yours, or set "
            f"{COMPILED_FOLDER} to a folder of yours"
        )
    set_unless_told(COMPILED_FOLDER, str(folder))
    return str(folder)
