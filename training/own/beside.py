"""The modules beside a user's file that it imports, and those that they import: found in the text, nothing is run.

Knows no file system: what lies beside is asked by its path. Light.
"""

from __future__ import annotations

import ast
import sys
from collections import deque
from collections.abc import Callable, Iterator

from launchyard.training.own.source import PACKAGE_FILE, OwnSource, module_of, path_of

MAX_MODULES = 64
MAX_MODULES_BYTES = 1 << 20  # of all together
INSTALL = "put them into a package and install it in the environment of the workers"

ReadBeside = Callable[[str], bytes | None]


def with_modules(source: OwnSource, read: ReadBeside, installed: Callable[[str], bool]) -> OwnSource:
    """The same with its modules. ValueError names those that cannot go with it, and what to do.

    read: a file beside it, by its path there; None if there is none. installed: is a module of that name, anyway?
    """
    found: dict[str, bytes] = {}
    todo = deque(_imports(source.raw, source.name, ""))
    seen: set[str] = set()
    while todo:
        name = todo.popleft()
        if not name or name in seen:
            continue
        seen.add(name)
        if (file := _beside(name, read, found)) is None:
            continue
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or installed(top):
            what = f"lies beside {source.name}, which imports it, and {top} is an installed module, too"
            raise ValueError(f"{path_of(file)} {what}; give it another name")
        for package in list(_with_parents(name))[:-1]:  # a folder without __init__.py is one, too
            found.setdefault(f"{package}{PACKAGE_FILE}", b"")
        package = name if file.endswith(PACKAGE_FILE) else name.rpartition(".")[0]
        todo.extend(_imports(found[file], path_of(file), package))
        _check_size(found, source.name)
    return OwnSource(source.name, source.raw, tuple(sorted(found.items())))


def _beside(name: str, read: ReadBeside, found: dict[str, bytes]) -> str | None:
    """The file of a module, which is put into `found`; None if there is none. Packages win, as they do in Python."""
    for file in (f"{name}{PACKAGE_FILE}", f"{name}.py"):
        raw = read(path_of(file))
        if raw is not None:
            found[file] = raw
            return file
    return None


def _check_size(found: dict[str, bytes], name: str) -> None:
    n_bytes = sum(map(len, found.values()))
    if len(found) <= MAX_MODULES and n_bytes <= MAX_MODULES_BYTES:
        return
    some = ", ".join(sorted({module_of(file).partition(".")[0] for file in found})[:5])
    raise ValueError(
        f"{name} imports {len(found)} modules that lie beside it, {n_bytes:,} bytes ({some}, …); a run keeps at most "
        f"{MAX_MODULES} of {MAX_MODULES_BYTES:,} bytes together; {INSTALL}"
    )


def _imports(raw: bytes, name: str, package: str) -> Iterator[str]:
    """The dotted names that a file imports, each after the packages that it lies in; some may be no modules.

    package: that of the file, for imports that begin with a dot.
    """
    try:
        tree = ast.parse(raw.decode(), name)
    except (SyntaxError, ValueError) as error:  # ValueError: a null byte, or no UTF-8
        line = getattr(error, "lineno", None) or 1
        raise ValueError(f"{name}:{line}: no Python: {getattr(error, 'msg', error)}") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                yield from _with_parents(one.name)
        elif isinstance(node, ast.ImportFrom):
            origin = _origin(node, name, package)
            yield from _with_parents(origin)
            yield from (f"{origin}.{one.name}" for one in node.names if one.name != "*")


def _origin(node: ast.ImportFrom, name: str, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".") if package else []
    if node.level > len(parts):
        meant = node.module or ", ".join(one.name for one in node.names)
        raise ValueError(f"{name}:{node.lineno}: an import with a dot, and it lies in no package; write {meant} alone")
    above = parts[: len(parts) - node.level + 1]
    return ".".join([*above, *([node.module] if node.module else [])])


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[: number + 1]) for number in range(len(parts)))
