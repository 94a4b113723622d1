"""What is installed: one package, whole, that works outside any clone and whatever else is called like its rooms."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.shell import cast_shadows

ROOT = Path(__file__).parents[1]
ROOMS = ("host", "storage", "run", "model", "training", "launcher", "clusters", "recipes")
DATA = (".yaml", ".yml", ".json", ".txt", ".css", ".html", "py.typed")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    words = ["pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([sys.executable, "-m", *words, "--wheel-dir", str(folder), str(ROOT)], check=True, timeout=120)
    return next(folder.glob("launchyard-*.whl"))


@pytest.fixture
def site(wheel: Path, tmp_path: Path) -> Path:
    """The wheel's files in a folder of their own, beside a person's packages of the same names as our rooms."""
    folder = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(folder)
    cast_shadows(folder, but=("launchyard.py", "torch.py", "yaml.py"))
    return folder


def python(*words: str, site: Path, cwd: Path) -> str:
    """Of an environment that has this package and no other of ours."""
    env = {**os.environ, "PYTHONPATH": str(site), "HOME": str(cwd), "XDG_STATE_HOME": str(cwd / "state")}
    done = subprocess.run(
        [sys.executable, "-P", *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wheel_holds_one_package_and_all_of_it(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in names} == {"launchyard"}
    tracked = subprocess.run(
        ["git", "ls-files", *ROOMS], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    missing = [name for name in tracked if name.endswith((".py", *DATA)) and f"launchyard/{name}" not in names]
    assert not missing, "a room's file is not in the wheel"
    assert "launchyard/py.typed" in names


def test_it_works_outside_any_clone_beside_packages_of_any_name(site: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    cast_shadows(here)
    said = python("-c", "import launchyard; print(launchyard.__file__)", site=site, cwd=here)
    assert said.startswith(str(site))
    assert "pythia-160m" in python("-m", "launchyard", "models", "--json", site=site, cwd=here)
    plan = json.loads(python("-m", "launchyard", "--local", "--dry-run", "--json", site=site, cwd=here))
    assert plan["plan"]["name"] == "quickstart"
    for cluster in ("slurm", "ray"):
        python("-m", "launchyard", "quickstart", "--cluster", cluster, "--dry-run", site=site, cwd=here)
