"""The SLURM sandbox as people use it: up, found by a shell, mended, down, and nothing left of it anywhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner, Result

from launchyard.errors import UserError
from launchyard.host.processes import wait_until
from launchyard.launcher.backends.cluster import load_cluster
from launchyard.launcher.cli.main import cli
from launchyard.launcher.sandbox.namespaces import namespace_of
from launchyard.launcher.sandbox.slurm import service
from launchyard.launcher.sandbox.slurm.conf import Settings
from launchyard.launcher.sandbox.slurm.host import FREEZER
from launchyard.launcher.sandbox.slurm.site import CONTROLLER, DATABASE, MUNGE, Site
from launchyard.run.rundir import RunDir
from tests.slurm.cluster import QUICK, has_slurm, running_cluster

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).parents[2]


def sandbox(*words: str) -> Result:
    return CliRunner().invoke(cli, ["sandbox", *words], standalone_mode=False, catch_exceptions=False)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A user's folders, short enough for sockets, with nothing left running at the end."""
    if not has_slurm():
        pytest.skip("needs slurmctld, slurmd, slurm-client, munge, and namespaces")
    folder = Path(tempfile.mkdtemp(prefix="lyhome-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME"):
            patch.setenv(name, str(folder / name[4:7].lower()))
        yield folder
        service.down()
    shutil.rmtree(folder)


@pytest.fixture
def site(home: Path) -> Site:
    """One that runs, with all its nodes."""
    facts = service.up(report=lambda _: None)
    assert facts.running
    return Site(Path(facts.folder))


def machine() -> dict[str, object]:
    """What a sandbox must not change: names, addresses, mounts and control groups of the machine."""
    groups = sorted(path.name for path in FREEZER.iterdir()) if FREEZER.is_dir() else []
    # What containers of others do meanwhile is none of our business.
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if "hosts" in line or "slurm" in line]
    return {
        "hosts": Path("/etc/hosts").read_bytes(), "name": os.uname().nodename, "mounts": mounts,
        "groups": [name for name in groups if "slurm" in name],
        "etc": sorted(map(str, Path("/etc/slurm").glob("*"))),
    }  # fmt: skip


# -- up --------------------------------------------------------------------------------------------------------------
def test_up_is_idempotent_and_a_shell_finds_it(site: Site, home: Path) -> None:
    pids = {daemon: site.pid(daemon) for daemon in site.daemons}
    again = json.loads(sandbox("up", "slurm", "--nodes", "4", "--json").stdout)
    assert (again["running"], again["nodes"], again["not_running"]) == (True, "4 idle", None)
    assert {daemon: site.pid(daemon) for daemon in site.daemons} == pids
    shown = sandbox("status", "slurm").output
    (typed,) = [line.strip() for line in shown.splitlines() if "sinfo" in line]
    launch = f'#!/bin/sh\nexec {sys.executable} -m launchyard.launcher.cli.main "$@"\n'
    (home / "launch").write_text(launch)
    (home / "launch").chmod(0o755)
    env = {**os.environ, "PATH": f"{home}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", f"{typed} -h -N && srun -N4 hostname"], env=env, capture_output=True, text=True
    )
    assert sorted(done.stdout.split()[-4:]) == ["node1", "node2", "node3", "node4"], done.stderr


def test_its_cluster_file_is_one(site: Site) -> None:
    found = load_cluster("sandbox-slurm")
    assert (found.name, found.scheduler) == ("sandbox-slurm", "slurm")
    assert found.slurm is not None and found.slurm.partition == "batch"
    assert (found.node.gpus, found.node.cpus, found.node.memory) == (None, 8, "16GiB")  # none to compute with
    assert found.slurm.extra == {"gres": "gpu:2"}
    assert found.environment == {"SLURM_CONF": str(site.conf), "OMP_NUM_THREADS": "1"}
    assert Path(found.storage.url).is_dir()


def test_the_command_that_it_shows_trains(site: Site) -> None:
    """With the fake GPUs of its nodes, on the CPU."""
    words = next(line.split()[1:] for line in service.status().next_commands if line.startswith("launch quickstart"))
    told = CliRunner().invoke(cli, [*words, "train.max_steps=3", "--json"], standalone_mode=False)
    assert told.exit_code == 0, told.output
    run = RunDir(json.loads(told.stdout)["run_url"])
    assert wait_until(lambda: run.outcome() is not None, seconds=90)
    assert run.outcome().outcome == "completed"
    assert (run.job(0).nnodes, run.job(0).device) == (2, "cpu")
    assert "gpu:2" in site.run("scontrol", "show", "job", run.job(0).job_id).stdout


def test_other_settings_are_refused_while_it_runs(site: Site) -> None:
    with pytest.raises(UserError, match=r"is up with nodes 4, proctrack linuxproc$") as caught:
        sandbox("up", "slurm", "--nodes", "3", "--proctrack", "cgroup", "--gpus-per-node", "2")
    assert caught.value.hint == "launch sandbox down slurm, then up again"


def test_loopback_only_and_for_us_alone(site: Site) -> None:
    listening = {
        connection.laddr.ip
        for daemon in site.daemons
        for connection in psutil.Process(site.pid(daemon)).net_connections("inet")
        if connection.status == "LISTEN"
    }
    assert listening == {"127.0.0.1", "127.0.0.11", "127.0.0.12", "127.0.0.13", "127.0.0.14"}
    assert stat.S_IMODE(site.folder.stat().st_mode) == 0o700
    key = (site.folder / "etc/munge.key").read_bytes()
    holders = [path for path in site.folder.rglob("*") if path.is_file() and key in path.read_bytes()]
    assert [path.name for path in holders] == ["munge.key"]
    assert stat.S_IMODE(holders[0].stat().st_mode) == 0o600


def test_the_guide_as_typed(site: Site, home: Path) -> None:
    block = re.findall(r"```\n(.*?)```", (ROOT / "docs/guides/slurm-sandbox.md").read_text(), re.DOTALL)[0]
    launch = f'launch() {{ PYTHONPATH={ROOT} "{sys.executable}" -m launchyard.launcher.cli.main "$@"; }}\n'
    done = subprocess.run(["bash", "-euc", launch + block], cwd=home, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(re.findall(r"^node\d$", done.stdout, re.MULTILINE)) == [f"node{i}" for i in range(1, 5)]
    assert re.findall(r"^0,1$", done.stdout, re.MULTILINE) == ["0,1"] * 4
    assert done.stdout.endswith("slurm is down\n")


# -- what dies is started again --------------------------------------------------------------------------------------
def test_up_mends_what_was_killed(site: Site) -> None:
    for daemon in (MUNGE, CONTROLLER, "node2"):
        os.kill(site.pid(daemon) or 0, signal.SIGKILL)
    site.crash("node3")
    assert wait_until(lambda: site.pid("node2") is None, seconds=5)
    assert sandbox("status", "slurm").return_value == 1
    said = sandbox("up", "slurm").output
    assert "started again: munged, slurmctld, node2, node3" in said
    assert "4 idle" in said
    site.try_out()


# -- down ------------------------------------------------------------------------------------------------------------
def test_down_leaves_nothing_but_runs_and_logs(home: Path) -> None:
    """Also of jobs that have left their session, and of jobs whose slurmd was killed before."""
    before = machine()
    service.down()
    site = Site(Path(service.up(report=lambda _: None, kill_wait_seconds=30).folder))
    during = machine()
    assert {key: value for key, value in during.items() if key != "groups"} == {
        key: value for key, value in before.items() if key != "groups"
    }
    (site.folder / "runs/kept").write_text("a run")
    script = "trap '' TERM HUP; srun bash -c 'trap \"\" TERM; setsid env -i sleep 301 & sleep 302' & wait"
    done = site.run("sbatch", "--output=/dev/null", "--nodes=2", "--ntasks-per-node=1", f"--wrap={script}")
    assert done.returncode == 0, done.stderr

    def sleepers() -> list[psutil.Process]:
        return [one for one in site.processes() if one.cmdline()[:1] == ["sleep"]]

    assert wait_until(lambda: len(sleepers()) == 4, seconds=20)
    site.stop_daemon("node1", signal.SIGKILL)
    everything = site.processes()
    daemons = [site.pid(daemon) for daemon in site.daemons]
    assert service.down() is True
    assert not [process for process in everything if process.is_running() and process.status() != "zombie"]
    assert not [pid for pid in daemons if pid and psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
    assert {path.name for path in site.folder.iterdir()} == {"lock", "log", "runs"}
    assert (site.folder / "runs/kept").read_text() == "a run"
    assert machine()["groups"] == []
    assert service.down() is False
    shutil.rmtree(site.folder / "runs")


def test_a_shell_that_only_knows_it_survives_down(site: Site) -> None:
    """SLURM_CONF is exported for people, so it alone marks nothing."""
    with subprocess.Popen(["sleep", "300"], env={**os.environ, "SLURM_CONF": str(site.conf)}) as bystander:
        try:
            assert namespace_of(bystander.pid) == namespace_of(os.getpid())
            service.down()
            assert bystander.poll() is None
        finally:
            bystander.kill()


# -- accounting, and users -------------------------------------------------------------------------------------------
@pytest.mark.skipif(shutil.which("mariadb-install-db") is None, reason="needs slurmdbd and mariadb-server")
def test_with_accounting() -> None:
    tracked = "cgroup" if os.geteuid() == 0 and FREEZER.is_dir() else "linuxproc"
    settings = QUICK.model_copy(update={"accounting": True, "nodes": 2, "proctrack": tracked})
    with running_cluster(settings) as cluster:
        assert {DATABASE, "slurmdbd"} < set(cluster.site.daemons)
        job = cluster.sbatch("exit 3")
        assert cluster.wait_job(job) == "FAILED"
        asked = ("sacct", "--noheader", "--allocations", "--parsable2", f"--jobs={job}", "--format=State,ExitCode")
        cluster.wait(lambda: cluster.run(*asked).strip() == "FAILED|3:0", "the job's end in sacct", 30)
        ports = psutil.Process(cluster.site.pid("slurmdbd")).net_connections("inet")
        assert [one.laddr.ip for one in ports if one.status == "LISTEN"] == ["127.0.0.1"]
        groups = list(FREEZER.glob("slurm_node[12]"))
        assert len(groups) == (2 if tracked == "cgroup" else 0)
    assert not any(path.exists() for path in groups)


# As somebody who may not read this Python: all is imported before, and only SLURM's programs are started after.
AS_USER = """
import ctypes, os, sys
import psutil
from pathlib import Path
from launchyard.launcher.sandbox.slurm import host as slurm_host
from launchyard.launcher.sandbox.slurm.conf import Settings
from launchyard.launcher.sandbox.slurm.site import Site
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # as a process that was always this user's
site = Site(Path(sys.argv[1]))
ask = "id -u; hostname; echo $CUDA_VISIBLE_DEVICES; grep CapEff /proc/self/status"
try:
    slurm_host.require(accounting=False, cgroup=False, report=print)
    site.start(Settings(nodes=2))
    site.try_out()
    print(site.run("srun", "-N1", "--gpus-per-node=1", "sh", "-c", ask).stdout)
    print("crashed", site.crash("node2") >= 1, site.pid("node2"))
finally:
    print("stopped", site.stop(), site.processes())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_for_a_user_who_is_not_root() -> None:
    """The same in a user namespace, and jobs have no rights that the user has not."""
    import pwd

    user = pwd.getpwnam("nobody")
    folder = Path(tempfile.mkdtemp(prefix="lyuser-", dir="/tmp"))
    os.chown(folder, user.pw_uid, user.pw_gid)
    try:
        done = subprocess.run(
            [sys.executable, "-c", AS_USER, str(folder / "s"), str(user.pw_uid)],
            cwd=ROOT, capture_output=True, text=True, timeout=120,
            env={"PATH": os.environ["PATH"], "HOME": str(folder), "USER": "nobody", "LOGNAME": "nobody"},
        )  # fmt: skip
    finally:
        shutil.rmtree(folder)
    found = ["node1", "0", "CapEff:", "0" * 16, "crashed", "True", "None", "stopped", "True", "[]"]
    assert done.stdout.split() == [str(user.pw_uid), *found], done.stderr


# -- torch ----------------------------------------------------------------------------------------------------------
def test_torchrun_meets_across_nodes(tmp_path: Path) -> None:
    """c10d by the host name of the first node, gloo between nodes that know each other by name only."""
    pytest.importorskip("torch")
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import os, socket, sys, torch, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "total = torch.tensor([dist.get_rank() + 1.0]); dist.all_reduce(total)\n"
        "open(f'{sys.argv[1]}/{dist.get_rank()}', 'w').write(f'{socket.gethostname()} {total.item():.0f}')\n"
        "dist.destroy_process_group()\n"
    )
    script = f"""
export OMP_NUM_THREADS=1
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -1)
srun --ntasks-per-node=1 {sys.executable} -m torch.distributed.run --nnodes=2 --nproc-per-node=1 \\
    --rdzv-backend=c10d --rdzv-id=1 --rdzv-endpoint="$head:$((61000 + SLURM_JOB_ID % 4536))" {worker} {tmp_path}
"""
    with running_cluster(Settings(nodes=2)) as cluster:
        out = tmp_path / "out"
        job = cluster.sbatch(script, "--nodes=2", "--ntasks-per-node=1", f"--output={out}")
        assert cluster.wait_job(job, seconds=120) == "COMPLETED", out.read_text()
    assert sorted((tmp_path / rank).read_text() for rank in "01") == ["node1 3", "node2 3"]
