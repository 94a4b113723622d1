"""Modules that are imported from their frozen text, before any that is installed. Runs them when they are asked for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import ExecutionLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

from launchyard.training.own.source import PACKAGE_FILE, module_of, path_of


class FrozenModules(MetaPathFinder, ExecutionLoader):
    """Finds and loads them; a traceback shows their lines."""

    def __init__(self, modules: Sequence[tuple[str, bytes]]) -> None:
        self._files = {module_of(file): file for file, _ in modules}
        self._texts = {module_of(file): raw.decode() for file, raw in modules}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return spec_from_loader(fullname, self) if fullname in self._files else None

    def is_package(self, fullname: str) -> bool:
        return self._files[fullname].endswith(PACKAGE_FILE)

    def get_source(self, fullname: str) -> str:
        return self._texts[fullname]

    def get_filename(self, fullname: str) -> str:
        return path_of(self._files[fullname])


def install(modules: Sequence[tuple[str, bytes]]) -> None:
    """From here on this process imports these; those of a file before them go."""
    sys.meta_path[:] = [one for one in sys.meta_path if not isinstance(one, FrozenModules)]
    for name, module in list(sys.modules.items()):
        if isinstance(getattr(getattr(module, "__spec__", None), "loader", None), FrozenModules):
            del sys.modules[name]
    if modules:
        sys.meta_path.insert(0, FrozenModules(modules))
