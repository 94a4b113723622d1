"""The record of what is installed here."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path

import pytest

from launchyard.host import inventory


def install(folder: Path, name: str, version: str, **address: object) -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if address:
        (info / "direct_url.json").write_text(json.dumps(address))


def test_every_package_is_recorded_as_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    install(first, "twice", "2.0")
    install(second, "twice", "1.0")
    install(second, "from_git", "0.1", url="https://git/x", vcs_info={"vcs": "git", "commit_id": "abc"})
    install(second, "damaged", "0.1", address=1)
    monkeypatch.setattr(sys, "path", [str(first), str(second), *sys.path])
    found = inventory.take_inventory()
    assert (found["packages"]["twice"], found["packages"]["pydantic"]) == ("2.0", metadata.version("pydantic"))
    assert found["sources"]["from_git"] == "https://git/x@abc"
    assert found["sources"]["damaged"] == "unknown"


def test_modules_and_settings_are_recorded_and_nothing_else_of_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOADEDMODULES", "gcc/12:cuda/13")
    monkeypatch.setenv("_LMFILES_", "/m/gcc/12.lua:/m/cuda/13.lua")
    monkeypatch.setenv("NCCL_ALGO", "Ring")
    for name in ("WANDB_API_KEY", "NVIDIA_API_KEY", "TORCH_HUB_TOKEN", "MY_OWN"):
        monkeypatch.setenv(name, "hush")
    found = inventory.take_inventory()
    assert (found["modules"], found["module_files"][1]) == (["gcc/12", "cuda/13"], "/m/cuda/13.lua")
    assert found["variables"]["NCCL_ALGO"] == "Ring"
    assert "hush" not in json.dumps(found)
