"""What sbatch is given: read as golden files, taken by the real sbatch, and every word of a plan survives it."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launchyard.launcher.backends.cluster import Cluster
from launchyard.launcher.backends.request import After, Ask
from launchyard.launcher.backends.slurm.client import describe_reason, refusal
from launchyard.launcher.backends.slurm.request import agent_argv, sbatch_text
from launchyard.launcher.submit.launch import Request, make_ready
from launchyard.run.records import Shape
from tests.slurm.cluster import SlurmCluster

GOLDEN = Path(__file__).parent / "golden"
HARD = "a b;$HOME 'q' \"d\" %j #x"
FACTS: dict[str, Any] = {
    "python": "/venv/bin/python",
    "run_url": "/runs/tiny-ab12",
    "run_id": "tiny-ab12",
    "log": "/runs/tiny-ab12/job-%j.log",
    "code": "/runs/tiny-ab12/code",
    "gpus": 8,
    "sizes": (8,),
    "logs": "/logs",
}
SITE = {"name": "site", "scheduler": "slurm"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bare": ({}, {"nnodes": 1, "gpus": 0}),
    "all": (
        {
            "node": {"gpus": 8, "cpus": 96, "memory": "900GB"},
            "slurm": {
                "partition": "gpu,spot", "account": "team", "qos": "high", "constraint": "h100&ib",
                "exclude": "node[1,3]", "time_limit": "24:00:00", "notice_seconds": 300,
                "extra": {"exclusive": True, "reservation": "team"},
            },
            "setup": ["module load cuda/13", 'export A="b c"'],
        },
        {},
    ),
    "time-of-the-recipe": ({"slurm": {"time_limit": "24:00:00"}}, {"time_limit": "02:00:00"}),
    "spare-nodes": ({}, {"spares": 1, "nnodes": 2}),
    "after-another": ({}, {"after": After(success="4711")}),
    "gpus-in-other-words": ({"slurm": {"extra": {"gpus-per-node": "h100:8", "mem-per-gpu": "100G"}}}, {}),
    "hard-names": (
        {"slurm": {"extra": {"comment": HARD}}},
        {"run_url": f"/r/{HARD}", "log": f"/r/{HARD.replace('%', '%%')}/job-%j.log", "code": f"/r/{HARD}/code"},
    ),
}  # fmt: skip


def text_of(case: str, **changes: Any) -> str:
    cluster, facts = CASES[case]
    cluster = {**cluster, **({"setup": changes.pop("setup")} if "setup" in changes else {})}
    chosen = {**FACTS, **facts, **changes}
    nnodes = chosen.pop("nnodes", 8)
    chosen["shape"] = Shape(nnodes=nnodes, nproc_per_node=8, device="cuda")
    paths = {key: chosen.pop(key) for key in ("log", "code")}
    return sbatch_text(Cluster.model_validate({**SITE, **cluster}), Ask(**chosen), **paths)


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    """To renew: delete the file, run the test, read the difference."""
    path = GOLDEN / f"{case}.sh"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text_of(case))
        pytest.fail(f"{path} was missing and has been written; read it and run again")
    assert text_of(case) == path.read_text()


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0\n\r", exclude_categories=("Cs", "Cc")), min_size=1)


@given(url=WORDS, code=WORDS)
def test_the_shell_reads_the_very_words(url: str, code: str) -> None:
    text = text_of("bare", run_url=f"/r/{url}", code=f"/c/{code}")
    command = next(line for line in text.splitlines() if line.startswith("exec "))
    words = shlex.split(command)
    assert words[1:7] == ["/venv/bin/python", "-P", "-u", "-m", "launchyard.launcher.backends.slurm.owner", f"/r/{url}"]
    (path,) = (line for line in text.splitlines() if line.startswith("export PYTHONPATH="))
    assert shlex.split(path.removesuffix("${PYTHONPATH:+:$PYTHONPATH}"))[1] == f"PYTHONPATH=/c/{code}"
    assert directives(text) == directives(text_of("bare", run_url="/r/other", code="/c/other"))


def directives(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("#SBATCH")]


def test_a_shell_that_runs_it_sees_them_too(tmp_path: Path) -> None:
    """bash itself, with what an agent would be in place of Python."""
    show = tmp_path / "show"
    show.write_text('#!/bin/bash\nprintf "%s\\n" "$@" "$PYTHONPATH"\n')
    show.chmod(0o700)
    text = text_of("hard-names", python=str(show))
    env = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", "PATH": "/usr/bin:/bin", "PYTHONPATH": "/else where"}
    done = subprocess.run(["bash", "-c", text], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "-P", "-u", "-m", "launchyard.launcher.backends.slurm.owner", f"/r/{HARD}", "--notice=120",
        "--job-id=7", "--restarts=0",
        "--nodes=node[1-2]", f"/r/{HARD}/code:/else where",
    ]  # fmt: skip


def run_setup(*commands: str) -> tuple[int, str, list[str]]:
    """Status, output and messages of a job with this setup, whose agent prints $A."""
    text = text_of("bare", setup=list(commands))
    text = "\n".join("echo $A" if line.startswith("exec ") else line for line in text.splitlines())
    done = subprocess.run(["bash", "-c", text], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    return done.returncode, done.stdout.strip(), done.stderr.splitlines()


def test_setup_sets_up_the_shell_of_the_job() -> None:
    several = "if true; then\n  (exit 3)\n  A=2\nfi"
    assert run_setup("export A='a  b'", "# a comment", "true") == (0, "a b", [])
    assert run_setup("f() { false; A=1; }; f", "A=$((A + 1))", several, "A=${A}3") == (0, "23", [])


# A command -> the status it ends with.
FAILING = {
    "false": 1,
    "no-such-command 'a b'": 127,
    "set -e\nfalse\ntrue": 1,
    "exit 7": 7,
    "exit 0": 1,
    "if true; then": 2,
}


@pytest.mark.parametrize("command", FAILING)
def test_a_command_of_setup_that_fails_ends_the_job_and_is_named(command: str) -> None:
    status, output, messages = run_setup("A=1", command, "A=2; fi")
    assert (status, output) == (FAILING[command], "")
    found = "\n".join(messages)
    assert "\nSetupError: setup of the cluster file ended with status " in f"\n{found}"
    assert found.endswith(f" at: {command}")


def test_containers_get_their_words_as_they_are() -> None:
    def argv(runtime: str) -> list[str]:
        container = {"runtime": runtime, "image": "/i m.sqsh", "mounts": ["/a b:/c"]}
        cluster = Cluster.model_validate({**SITE, "container": container})
        shape = Shape(nnodes=2, nproc_per_node=8, device="cuda")
        return agent_argv(cluster, Ask(run_id="r", run_url="/r", shape=shape, sizes=(2,), python="/p", logs="/l"))

    assert {"--container-image=/i m.sqsh", "--container-mounts=/a b:/c"} < set(argv("pyxis"))
    words = argv("apptainer")
    assert words[words.index("apptainer") :][:5] == ["apptainer", "exec", "--nv", "--bind=/a b:/c", "/i m.sqsh"]
    for words in (argv("pyxis"), argv("apptainer")):
        inside = words[words.index("env") :]
        assert inside[1:10] == [
            "-u",
            "PYTHONHOME",
            "-u",
            "PYTHONPATH",
            "-u",
            "PYTHONUSERBASE",
            "PYTHONPATH=/r/code",
            "LAUNCHYARD_IMAGE=/i m.sqsh",
            "python3",
        ]


def test_reasons_describe_reason() -> None:
    assert describe_reason("(Resources)") == "the nodes it needs are in use (Resources)"
    assert describe_reason("SomethingNew") == "SomethingNew"
    assert describe_reason("ReqNodeNotAvail, UnavailableNodes:node[1-3]").startswith(
        "a node it asks for is not available (Req"
    )
    assert describe_reason("None") == ""
    said = (
        "sbatch: error: invalid partition specified: x\nsbatch: error: Batch job submission failed: Invalid partition"
    )
    assert refusal(said).endswith("(see slurm.partition of the cluster file; the partitions: sinfo -s)")


def test_a_limit_that_leaves_no_time_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from launchyard.errors import LaunchError

    (tmp_path / "site.yaml").write_text("name: site\nscheduler: slurm\nslurm: {notice_seconds: 120}\n")
    monkeypatch.chdir(tmp_path)
    overrides = {"resources.time_limit": "00:02:00", "train.device": "cpu"}
    with pytest.raises(LaunchError, match=r"resources.time_limit: 120 s, of which the last 120 are to save in"):
        make_ready(Request("quickstart", "./site.yaml", overrides))


# -- on the sandbox --------------------------------------------------------------------------------------------------
@pytest.mark.slurm
@pytest.mark.parametrize("case", ["bare", "hard-names"])
def test_sbatch_takes_it(case: str, cluster: SlurmCluster, tmp_path: Path) -> None:
    """And the job really has the names."""
    folder = tmp_path / HARD
    folder.mkdir()
    show = tmp_path / "show"
    show.write_text('#!/bin/bash\nprintf "%s\\n" "$@" "$PYTHONPATH"\n')
    show.chmod(0o700)
    script = folder / "job.sh"
    log = f"{str(folder).replace('%', '%%')}/job-%j.log"
    script.write_text(text_of(case, python=str(show), run_url=str(folder), log=log, nnodes=2, gpus=2))
    cluster.run("sbatch", "--test-only", str(script))
    job = int(cluster.run("sbatch", "--parsable", str(script)))
    assert cluster.wait_job(job) == "COMPLETED"
    assert (folder / f"job-{job}.log").read_text().splitlines()[:5] == [
        "-P",
        "-u",
        "-m",
        "launchyard.launcher.backends.slurm.owner",
        str(folder),
    ]
    seen = cluster.scontrol("show", "job", str(job))
    assert "JobName=tiny-ab12" in seen
    if case == "hard-names":
        assert f"Comment={HARD}" in seen
