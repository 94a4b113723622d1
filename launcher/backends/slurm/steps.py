"""The steps of a job that hold its agents: one for all nodes, and one for a node whose agent was lost."""

from __future__ import annotations

import contextlib
import secrets
import subprocess

from launchyard.host.environment import HUB, HUB_SECRET, REPLACED, step_environment
from launchyard.host.processes import python_environment, wait_until
from launchyard.launcher.agent.fleet.crew import Crew
from launchyard.launcher.agent.fleet.hub import Hub, Member
from launchyard.launcher.agent.signals import log_line
from launchyard.launcher.backends.slurm.request import AGENT
from launchyard.run import own_code
from launchyard.run.records import Submission

AGENT_OF_AN_ATTEMPT = "launchyard.launcher.agent.node"
LEAVE_SECONDS = 10.0  # for agents that were told to leave
SRUN_SECONDS = 30.0  # from KILL on, until srun has ended


class AgentSteps:
    """The agents of one job. `code`: srun's for all nodes; None while it runs."""

    def __init__(self, submission: Submission) -> None:
        self._submission = submission
        self._secret = secrets.token_hex(32)
        self._hub = Hub(self._secret)
        self._argv = that_stays(submission.agent)
        self.crew = Crew(self._hub, nodes=submission.nnodes, total=task_count(self._argv))
        self._all = self._start(self._argv)
        self._single: dict[str, subprocess.Popen[bytes]] = {}  # by node
        self._tried: set[Member] = set()

    @property
    def code(self) -> int | None:
        return self._all.poll()

    def mend(self) -> bool:
        """Starts an agent where one was lost. Returns False if nothing is under way that could bring those missing."""
        if not self.crew.has_begun:
            return self.code is None
        for place, member in self.crew.lost.items():
            if member in self._tried:
                continue
            self._tried.add(member)
            log_line(f"starting another agent on {place}")
            replaced = f"{member.hello.pid}:{member.hello.started}"
            self._single[place] = self._start(on_one_node(self._argv, place), {REPLACED: replaced})
        return any(step.poll() is None for step in self._single.values())

    def try_again(self) -> None:
        """What could not be started is tried once more by the next `mend`."""
        self._tried.clear()

    def close(self) -> None:
        """The agents leave; those that do not are ended."""
        self.crew.dismiss()
        steps = [self._all, *self._single.values()]
        wait_until(lambda: all(step.poll() is not None for step in steps), seconds=LEAVE_SECONDS)
        for step in steps:
            self._end(step)
        self._hub.close()

    def _start(self, argv: list[str], more: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        env = {**step_environment(), **self._submission.env, HUB: self._hub.address, HUB_SECRET: self._secret}
        return subprocess.Popen(
            argv,
            env=python_environment({**env, **(more or {})}, code=own_code.movable()),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # srun must not forward our signals in its own way
        )

    def _end(self, step: subprocess.Popen[bytes]) -> None:
        if step.poll() is None:
            step.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                step.wait(SRUN_SECONDS)


def that_stays(agent: list[str]) -> list[str]:
    """srun and its agents, also of a job that was queued when these were new in each attempt."""
    if AGENT_OF_AN_ATTEMPT not in agent:
        return agent
    at = agent.index(AGENT_OF_AN_ATTEMPT)
    words = ["--wait=0" if word.startswith("--wait=") else word for word in agent[:at]]
    return [*words, AGENT, agent[at + 1]]


def task_count(agent: list[str]) -> int:
    return int(next(word for word in agent if word.startswith("--ntasks=")).removeprefix("--ntasks="))


def on_one_node(agent: list[str], place: str) -> list[str]:
    """The same for one node of the job, beside the step that had an agent there and may still hold its resources."""
    words = [word for word in agent[1:] if not word.startswith(("--nodes=", "--ntasks="))]
    return [agent[0], "--nodes=1", "--ntasks=1", f"--nodelist={place}", "--overlap", "--mem=0", *words]
