from __future__ import annotations

import tomllib
from pathlib import Path

from launchyard.host.packages import EXTRAS, extra_of, install_command

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def packages_of(extra: str) -> set[str]:
    """With those of the extras of ours that it names."""
    found: set[str] = set()
    for package in PROJECT["optional-dependencies"][extra]:
        inner = package.removeprefix("launchyard[").removesuffix("]").split(",") if "launchyard[" in package else []
        found |= {package} if not inner else set().union(*map(packages_of, inner))
    return found


def test_the_extras_are_those_of_the_project() -> None:
    """But for those of the schedulers, which stand in their folders."""
    ours = set(PROJECT["optional-dependencies"]) - {"dev", "slurm", "ray", "ray-train"}
    assert (packages_of("slurm"), packages_of("ray")) == ({"submitit>=1.5.2"}, {"ray[default]>=2.50"})
    assert {extra: set(packages) for extra, packages in EXTRAS.items()} == {extra: packages_of(extra) for extra in ours}


def test_a_command_names_packages_only() -> None:
    assert install_command("azure", "s3").endswith(" install 'adlfs>=2024.7' 's3fs>=2024.9' 'aiobotocore>=2.15'")
    assert (extra_of("numpy.linalg"), extra_of("launchyard.model"), extra_of(None)) == ("train", None, None)
