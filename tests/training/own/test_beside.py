"""Modules beside a user's file: found in the text, frozen with it, and imported by no other name."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from launchyard.run.frozen import ChangedError
from launchyard.run.rundir import RunDir
from launchyard.training.own import beside
from launchyard.training.own.beside import with_modules
from launchyard.training.own.frozen import frozen_name, open_own_code, read_frozen, write_frozen
from launchyard.training.own.load import OwnCodeError, load_own_code, source_json
from launchyard.training.own.source import OwnSource, path_of

HOOK = "\ndef on_step(row):\n    return _answer()\n"
PARTS = {
    "losses.py": "from parts import mixer\nimport parts.deep.er\nANSWER = {'a': mixer.ONE + parts.deep.er.TWO}\n",
    "parts/__init__.py": "from .mixer import ONE\n",
    "parts/mixer.py": "from . import deep\nONE = 1\n",
    "parts/deep/er.py": "TWO = 2\n",
    "parts/unused.py": "raise SystemExit",
}


def found(text: str, lies: Mapping[str, str], installed: tuple[str, ...] = ()) -> OwnSource:
    def read(path: str) -> bytes | None:
        return lies[path].encode() if path in lies else None

    return with_modules(OwnSource("mine.py", text.encode()), read, installed.__contains__)


def test_what_is_imported_is_found_and_nothing_else(tmp_path: Path) -> None:
    source = found(f"import torch\ndef _answer():\n    from losses import ANSWER\n    return ANSWER\n{HOOK}", PARTS)
    assert [path_of(name) for name, _ in source.modules] == [
        *("losses.py", "parts/__init__.py", "parts/deep/__init__.py", "parts/deep/er.py", "parts/mixer.py"),
    ]
    run = RunDir(str(tmp_path))
    write_frozen(run, source)
    code = frozen_name(source)
    assert read_frozen(run, code) == source
    own = open_own_code(run, code)
    assert own is not None and own.call("on_step", row=None) == {"a": 3}
    assert load_own_code(OwnSource("mine.py", HOOK.replace("_answer()", "{}").encode())).call("on_step", row=None) == {}
    assert not {"losses", "parts", "parts.mixer"} & sys.modules.keys()
    run.write_text(f"{code.removesuffix('.py')}/parts.mixer.py", "ONE = 2\n")
    with pytest.raises(ChangedError, match="or a module of it"):
        read_frozen(run, code)


def test_a_file_alone_keeps_its_name() -> None:
    alone = found(f"import math{HOOK}", PARTS)
    assert alone.modules == () and alone.digest == OwnSource("other.py", alone.raw).digest
    text = f"import losses{HOOK}"
    assert found(text, PARTS).digest != found(text, {**PARTS, "parts/mixer.py": "from . import deep\nONE = 2\n"}).digest
    assert source_json(found(text, PARTS)).count("parts.mixer.py") == 1


def test_an_error_names_the_line_of_the_module() -> None:
    own = load_own_code(found(f"from losses import _answer{HOOK}", {"losses.py": "def _answer():\n    return 1 / 0\n"}))
    with pytest.raises(OwnCodeError, match=r"on_step of losses.py:2: ZeroDivisionError"):
        own.call("on_step", row=None)
    with pytest.raises(ValueError, match=r"losses.py:1: ZeroDivisionError"):
        load_own_code(found(f"import losses{HOOK}", {"losses.py": "1 / 0"}))


@pytest.mark.parametrize(
    ("text", "lies", "message"),
    [
        ("import random", {"random.py": ""}, "random.py lies beside mine.py.*another name"),
        ("import yaml.nodes", {"yaml/nodes.py": ""}, "yaml/nodes.py lies beside mine.py.*yaml is an installed"),
        ("from .losses import x", {"losses.py": ""}, "mine.py:1: an import with a dot.*write losses alone"),
        ("import losses", {"losses.py": "\ndef f(:"}, "losses.py:2: no Python"),
        ("import losses", {"losses.py": "from . import x"}, "losses.py:1: an import with a dot"),
    ],
)
def test_what_cannot_go_with_it(text: str, lies: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        found(text + HOOK, lies, ("yaml",))
    assert found("import numpy" + HOOK, lies, ("yaml",)).modules == ()


def test_too_much_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "MAX_MODULES", 4)
    with pytest.raises(ValueError, match=r"mine.py imports 5 modules.*\(losses, parts, …\).*and install it") as error:
        found(f"import losses{HOOK}", PARTS)
    assert "at most 4" in str(error.value)
    monkeypatch.undo()
    monkeypatch.setattr(beside, "MAX_MODULES_BYTES", 10)
    with pytest.raises(ValueError, match="of 10 bytes together"):
        found(f"import losses{HOOK}", PARTS)
