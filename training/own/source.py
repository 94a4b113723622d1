"""The user's file as it was read, with the modules that lie beside it. Runs nothing. Light."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

PACKAGE_FILE = ".__init__.py"


@dataclass(frozen=True)
class OwnSource:
    """modules: by dotted file names, such as losses.py, parts.__init__.py and parts.mixer.py; sorted."""

    name: str
    raw: bytes
    modules: tuple[tuple[str, bytes], ...] = ()

    @property
    def digest(self) -> str:
        """Of all that is run; without modules that of the file alone."""
        found = hashlib.sha256(self.raw)
        for name, raw in self.modules:
            found.update(f"\0{name}\0{len(raw)}\0".encode() + raw)
        return found.hexdigest()[:12]


def module_of(file: str) -> str:
    """What a module is imported as, by its dotted file name."""
    return file.removesuffix(PACKAGE_FILE).removesuffix(".py")


def path_of(file: str) -> str:
    """Where it lay beside the user's file: parts.mixer.py is parts/mixer.py."""
    return f"{file.removesuffix('.py').replace('.', '/')}.py"
