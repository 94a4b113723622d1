"""Which variables of a shell reach what we start."""

from __future__ import annotations

import pytest

from launchyard.host import environment
from tests.support.shell import FOREIGN, OF_A_JOB, OF_COMMANDS, OF_TORCHRUN

KEPT = {
    "PATH": "/bin", "HOME": "/h", "LC_ALL": "de_DE.UTF-8", "LANG": "C", "HF_TOKEN": "t", "AWS_ACCESS_KEY_ID": "k",
    "SLURM_CONF": "/etc/s.conf", "SLURM_JWT": "t", "PYTHONPATH": "/modules", "LD_LIBRARY_PATH": "/lib",
    "CUDA_VISIBLE_DEVICES": "1", "NCCL_DEBUG": "INFO", "BASH_ENV": "/etc/modules.sh", "https_proxy": "http://p:1",
}  # fmt: skip


def set_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {**FOREIGN, **dict.fromkeys(environment.OF_A_RUN, "1"), **KEPT})


def test_a_launch_passes_on_nothing_that_means_its_own_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch)
    assert environment.own_environment() == KEPT


def test_an_agent_is_in_the_job_of_its_plan_and_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch)
    seen = environment.job_environment()
    assert not seen.keys() & (OF_TORCHRUN.keys() | environment.OF_A_RUN)
    assert seen.keys() >= KEPT.keys() | OF_A_JOB.keys()


def test_srun_in_a_job_reads_the_job_and_no_options_besides_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch)
    seen = environment.step_environment()
    # What sbatch itself writes into a job; the rest are inputs that change a step.
    of_the_job = {name for name in OF_A_JOB if not name.startswith(("SLURM_CPU_BIND", "SLURM_STEP_"))}
    of_queries = {"SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN", "SLURM_TOPO_LEN", "SLURM_CONF_OUT"}
    assert seen.keys() >= KEPT.keys() | of_the_job
    slurm = {name for name in OF_COMMANDS if name.startswith(("SLURM", "SRUN", "PMI"))}
    assert seen.keys() & slurm == of_queries


def test_inputs_of_srun_that_sbatch_sets_from_a_plan_reach_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = dict.fromkeys(("SLURM_HINT", "SLURM_THREADS_PER_CORE", "SLURM_MEM_PER_NODE", "SLURM_NETWORK"), "1")
    monkeypatch.setattr("os.environ", asked)
    assert environment.step_environment() == asked
