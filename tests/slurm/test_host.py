"""What is said where a SLURM cannot live. Nothing is started, and nothing is installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from launchyard.errors import LaunchError, UserError
from launchyard.launcher.sandbox.slurm import host, service
from launchyard.launcher.sandbox.slurm.conf import Settings
from launchyard.launcher.sandbox.slurm.site import Site

PROGRAM = "#!/bin/sh\n"


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has the programs of one folder only."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(host, "_SYSTEM_PATH", str(tmp_path))
    return tmp_path


def make_program(folder: Path, name: str, script: str = "") -> None:
    (folder / name).write_text(PROGRAM + script)
    (folder / name).chmod(0o755)


def require(**asked: bool) -> list[str]:
    said: list[str] = []
    host.require(**{"accounting": False, "cgroup": False, **asked}, report=said.append)
    return said


def test_not_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UserError, match=r"needs Linux.*this is darwin"):
        require()


def test_another_distribution(bare: Path) -> None:
    make_program(bare, "munged")
    with pytest.raises(UserError, match=r"not installed: slurmctld, slurmd, sbatch$") as caught:
        require()
    assert "apt-get install slurmctld slurmd slurm-client" in str(caught.value.hint)


def test_a_user_is_told_what_to_type(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_program(bare, "apt-get", f"echo called >> {bare}/called")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UserError) as caught:
        require(accounting=True)
    packages = "slurmctld slurmd slurm-client munge slurmdbd mariadb-server"
    assert str(caught.value.hint).startswith(f"sudo apt-get install {packages} ")
    assert not (bare / "called").exists()


def test_root_gets_it_installed_after_fresh_lists(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first try fails as the lists are old; update; the second try works."""
    programs = " ".join(f'"{bare}/{name}"' for name in host.PACKAGES.values())
    script = f"""
        echo "$@" >> {bare}/called
        [ "$1" = update ] && : > {bare}/fresh && exit 0
        [ -e {bare}/fresh ] || {{ echo "E: Unable to locate package slurmd" >&2; exit 100; }}
        for program in {programs}; do echo '#!/bin/sh' > "$program"; /bin/chmod 755 "$program"; done
    """
    make_program(bare, "apt-get", script)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(host, "require_namespaces", lambda: None)
    assert require() == ["installing by apt-get: slurmctld slurmd slurm-client munge"]
    called = (bare / "called").read_text().splitlines()
    assert [line.split()[0] for line in called] == ["install", "update", "install"]
    assert "--no-install-recommends slurmctld slurmd slurm-client munge" in called[0]


def test_an_installation_that_fails_says_why(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_program(bare, "apt-get", "echo 'E: no network' >&2; exit 100")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(LaunchError, match="did not work\n  E: no network"):
        require()


@pytest.mark.parametrize(("user", "cure"), [(0, "--privileged"), (1000, "unprivileged_userns_clone")])
def test_no_namespaces(bare: Path, monkeypatch: pytest.MonkeyPatch, user: int, cure: str) -> None:
    for name in host.PACKAGES.values():
        make_program(bare, name)
    make_program(bare, "unshare", "echo 'unshare: unshare failed: Operation not permitted' >&2; exit 1")
    monkeypatch.setattr(os, "geteuid", lambda: user)
    with pytest.raises(UserError, match=r"host name of its own \(unshare: unshare failed: Operation") as caught:
        require()
    assert cure in str(caught.value.hint)


def test_no_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(host, "FREEZER", tmp_path / "freezer")
    monkeypatch.setattr(host, "UNIFIED", tmp_path / "cgroup.controllers")
    with pytest.raises(UserError, match="is not there or cannot be written"):
        host.require_cgroup()
    (tmp_path / "cgroup.controllers").touch()
    with pytest.raises(UserError, match="version 2 of control groups only"):
        host.require_cgroup()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UserError, match="needs root"):
        host.require_cgroup()


@pytest.mark.parametrize(("name", "why"), [("x" * 80, "too long by"), ("my files", "cannot hold a path")])
def test_folders_that_slurm_cannot_use(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(UserError, match=why) as caught:
        Site(tmp_path / name).start(Settings())
    assert "XDG_STATE_HOME" in str(caught.value.hint)
    assert not (tmp_path / name).exists()


def test_before_the_first_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert not service.status().running
    assert service.down() is False
    with pytest.raises(UserError, match="is not up"):
        service.environment()
    with pytest.raises(UserError, match=r"cannot have these settings: nodes: .*greater"):
        service.up(report=print, nodes=0)
