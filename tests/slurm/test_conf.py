"""The text of SLURM's files, against files that were read and found right. Delete a golden file to write it anew."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from launchyard.launcher.sandbox.slurm import conf
from launchyard.launcher.sandbox.slurm.conf import Place, Settings

GOLDEN = Path(__file__).with_name("golden")
PLACE = Place(Path("/home/jane/slurm"), "jane", 22101, 22102, 22103, 1000)
FULL = Settings(nodes=2, gpus_per_node=1, proctrack="cgroup", accounting=True, user_signal=True, grace_seconds=0)
TEXTS = {
    "slurm.conf": lambda: conf.slurm_conf(Settings(), PLACE),
    "people-slurm.conf": lambda: conf.slurm_conf(Settings(), PLACE, for_people=True),
    "full-slurm.conf": lambda: conf.slurm_conf(FULL, PLACE),
    "gres.conf": lambda: conf.gres_conf(Settings(), PLACE),
    "slurmdbd.conf": lambda: conf.slurmdbd_conf(PLACE),
    "hosts": lambda: conf.hosts_file(Settings(nodes=2), machine="10.0.0.7 store.lab\n"),
    "task_prolog": lambda: conf.task_prolog(PLACE),
}


@pytest.mark.parametrize("name", TEXTS)
def test_golden(name: str) -> None:
    path, text = GOLDEN / name, TEXTS[name]()
    if not path.exists():
        path.write_text(text)
        pytest.fail(f"{path} was not there; it is now: read it")
    assert text == path.read_text()


@given(
    st.builds(
        Settings, nodes=st.integers(1, 64), gpus_per_node=st.integers(0, 16), cpus_per_node=st.integers(1, 256),
        proctrack=st.sampled_from(["linuxproc", "cgroup"]), accounting=st.booleans(), user_signal=st.booleans(),
        grace_seconds=st.integers(0, 600),
    )
)  # fmt: skip
def test_people_and_daemons_see_one_cluster(settings: Settings) -> None:
    """The two files differ in what daemons alone are told; no key but that of nodes and partitions is said twice."""
    daemons, people = (conf.slurm_conf(settings, PLACE, for_people=one).splitlines() for one in (False, True))
    assert [line for line in daemons if line not in people] == [
        "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny",
        "TaskProlog=/home/jane/slurm/etc/task_prolog",
    ]
    assert [line for line in people if line not in daemons] == []
    keys = [line.split("=")[0] for line in people if not line.startswith(("NodeName", "PartitionName"))]
    assert len(keys) == len(set(keys))
    assert sum(line.startswith("NodeName=") for line in people) == settings.nodes
    addresses = {conf.address_of(node) for node in conf.node_names(settings)}
    assert len(addresses) == settings.nodes
    assert all(address.startswith("127.0.0.") for address in addresses)


def test_limits() -> None:
    for wrong in ({"nodes": 0}, {"nodes": 65}, {"cred_expire_seconds": 4}, {"proctrack": "pgid"}, {"nods": 1}):
        with pytest.raises(ValidationError):
            Settings(**wrong)
