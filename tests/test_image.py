"""The Dockerfile: what it may do, read from its text; and its steps, run in a chroot where there is no Docker.

The chroot stands on an overlay of this machine, whose Python takes the place of the base image: everything but the
base and the daemon is real.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SYSTEM_PYTHON = "/usr/bin/python3"
# What the machine needs to reach its package index; no other variable reaches a step.
# What KubeRay and our own manifests call in the image, in the shells that its versions use.
CALLS = 'ray --version && launch --version && python -c "import launchyard, ray, s3fs" && wget --version'
AS_KUBERAY = "; ".join(f"/bin/bash {shell} -- '{CALLS}'" for shell in ("-c", "-lc"))
PASSED_ON = re.compile(r"PIP_.*|https?_proxy|no_proxy|SSL_CERT_.*", re.IGNORECASE)


def instructions() -> list[tuple[str, str]]:
    """(word, rest) of each instruction of the Dockerfile, continued lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def all_of(word: str) -> list[str]:
    return [rest for name, rest in instructions() if name == word]


def test_every_install_follows_the_pins() -> None:
    installs = [command for rest in all_of("RUN") for command in re.split(r"&&|;", rest) if "pip install" in command]
    assert installs
    assert all("-c constraints.txt" in command for command in installs)


def test_the_base_is_a_version_and_the_user_is_not_root() -> None:
    assert all(re.fullmatch(r"(python:\$\{PYTHON\}|build)( AS [\w-]+)?", rest) for rest in all_of("FROM"))
    assert all_of("FROM")[-1] == "python:${PYTHON}", "the last stage is what `docker build` makes without a target"
    assert re.fullmatch(r"PYTHON=\d+\.\d+\.\d+-slim-\w+", all_of("ARG")[0])
    stages = " ".join(f"{word} {rest}" if word == "USER" else word for word, rest in instructions()).split("FROM")
    ending = [stage for stage in stages if "CMD" in stage]
    assert len(ending) == 2
    for stage in ending:
        assert re.search(r"USER (?!root|0 ).*CMD", stage)


def test_only_named_files_reach_the_image() -> None:
    ignored, *allowed = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignored == "*"
    named = {line.removeprefix("!") for line in allowed if line.startswith("!")}
    for rest in all_of("COPY"):
        if not rest.startswith("--from="):
            sources = rest.split()[:-1]
            assert set(sources) <= named
            assert all((ROOT / source).exists() for source in sources)


def test_no_secret_is_asked_for() -> None:
    text = "\n".join([*all_of("ARG"), *all_of("ENV")]).lower()
    assert not re.search(r"token|secret|password|key", text)


@dataclass
class Stage:
    """One FROM: where its file system is mounted, and what the instructions so far have set."""

    root: Path
    base: Path = Path("/")
    cwd: str = "/"
    user: str = "root"
    env: dict[str, str] = field(default_factory=lambda: {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"})

    def begin(self) -> Iterator[str]:
        base, python = shlex.quote(str(self.root.parent)), shlex.quote(str(self.root / "usr/local/bin/python"))
        yield f"mkdir -p {base}/upper {base}/work {self.root}"
        yield f"mount -t overlay overlay -o lowerdir={self.base},upperdir={base}/upper,workdir={base}/work {self.root}"
        yield f"for name in dev proc etc/resolv.conf; do mount --rbind /$name {self.root}/$name; done"
        yield f"ln -sf {SYSTEM_PYTHON} {python}"
        if self.base == Path("/"):
            yield f"rm -rf {self.root}/opt/launchyard {self.root}/src {self.root}/workspace"

    def run(self, command: str) -> str:
        passed = {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}
        env = " ".join(shlex.quote(f"{name}={value}") for name, value in {**passed, **self.env}.items())
        inside = shlex.quote(f"mkdir -p {self.cwd}; cd {self.cwd} && {{ {command}\n}}")
        return f"chroot --userspec={self.user} {self.root} /usr/bin/env -i HOME=/tmp {env} /bin/sh -c {inside}"

    def set_env(self, pairs: str) -> None:
        for pair in shlex.split(pairs):
            name, _, value = pair.partition("=")
            self.env[name] = value.replace(f"${name}", self.env.get(name, ""))


def script(folder: Path) -> str:
    """The Dockerfile as a shell script, a chroot a stage, with a look at the result at the end."""
    lines, stages, named = ["set -eu"], list[Stage](), dict[str, Stage]()
    for word, rest in instructions():
        match word:
            case "FROM":
                base, _, name = rest.partition(" AS ")
                after = named.get(base)
                place = folder / str(len(stages)) / "root"
                stages.append(Stage(place, after.root, after.cwd, after.user, {**after.env}) if after else Stage(place))
                lines += stages[-1].begin()
                named[name] = stages[-1]
            case "ARG" | "ENV" if stages:
                stages[-1].set_env(rest)
            case "WORKDIR":
                stages[-1].cwd = rest
            case "USER":
                stages[-1].user = rest
            case "RUN":
                lines.append(stages[-1].run(rest))
            case "COPY" if rest.startswith("--from="):
                theirs, source, target = rest.split()
                lines.append(f"cp -a {named[theirs.removeprefix('--from=')].root}{source} {stages[-1].root}{target}")
            case "COPY":
                *sources, target = rest.split()
                to = f"{stages[-1].root}{stages[-1].cwd}/{target}"
                lines += [f"cp -r {shlex.quote(str(ROOT / source))} {to}" for source in sources]
            case "CMD" if "ray" in named and stages[-1] is named["ray"]:
                lines.append(stages[-1].run("test $(id -u) = 10001; " + AS_KUBERAY))
            case "ARG" | "HEALTHCHECK" | "ENTRYPOINT" | "CMD":
                pass
            case _:
                raise AssertionError(f"{word} is not exercised here")
    lines.append(stages[-1].run("test $(id -u) = 10001; touch here; launch --help; launch --local --dry-run"))
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_steps_build_a_working_image(tmp_path: Path) -> None:
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("needs root and unshare to mount an overlay")
    if subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount")
    steps = tmp_path / "steps.sh"
    steps.write_text(script(tmp_path / "stages"))
    # The mounts live in a namespace of their own and go with it.
    done = subprocess.run(["unshare", "--mount", "sh", str(steps)], capture_output=True, text=True, check=False)
    shutil.rmtree(tmp_path / "stages", ignore_errors=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Usage" in done.stdout
