"""The probe of a node: prints one line of JSON. `launch doctor` runs it on the nodes: STORAGE TOKEN [NEEDED]...

Reads versions, addresses and ports, checks that the storage holds the file that the launcher has just written, and
writes one beside it. Changes nothing else.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from launchyard.host.ports import free_port
from launchyard.run.own_code import PACKAGE
from launchyard.storage import files


def main(argv: list[str]) -> int:
    print(json.dumps(probe(argv[1], argv[2], argv[3:])), flush=True)
    return 0


def probe(storage: str, token: str, needed: Sequence[str] = ()) -> dict[str, Any]:
    """`needed`: programs, and absolute paths of folders."""
    name = socket.gethostname()
    return {
        "host": name,
        "python": platform.python_version(),
        "executable": sys.executable,
        "launchyard": _version("launchyard"),
        "torch": _version("torch"),
        "code": str(PACKAGE),
        "address": _address(name),
        "port": _port(),
        "storage": _storage(storage, token, name),
        "missing": [name for name in needed if shutil.which(name) is None and not os.path.isdir(name)],
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _address(name: str) -> str | None:
    """The address of this node's name, seen from here, IPv4 or IPv6; other nodes must be able to reach it."""
    try:
        return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return None


def _port() -> str:
    """Empty if a port of the range that rendezvous uses can be opened."""
    try:
        with socket.socket() as server:
            server.bind(("", free_port()))
            server.listen(1)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _storage(storage: str, token: str, name: str) -> str:
    """Empty if the node finds the launcher's file, and could write one beside it."""
    try:
        found = files.read(f"{storage}/{token}").decode()
        files.write(f"{storage}/{token}-{name}", name.encode())
    except FileNotFoundError:
        return "the file that the launcher wrote there is not found"
    except (OSError, ValueError) as error:
        return str(error)
    return "" if found == token else "another file is there"


if __name__ == "__main__":
    sys.exit(main(sys.argv))
