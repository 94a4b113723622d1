"""The very text of a job: a pure function of a plan's facts and the cluster. Asks no queue."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import Field

from launchyard.host.processes import python_argv
from launchyard.launcher.backends.request import Ask, Request

if TYPE_CHECKING:
    from launchyard.launcher.backends.cluster import Cluster
    from launchyard.launcher.backends.example.options import Example

OWNER = "launchyard.launcher.backends.example.owner"
JOB = "{job}"  # the path of the job's file, which is drawn when it is submitted


class ExampleRequest(Request):
    """The text that is written into the spool folder, and that folder."""

    place: dict[str, Any] = Field(description="The section of the cluster file.")
    argv: list[str] = Field(description="The owner of the run, with a mark for the job.")


def make_request(cluster: Cluster, ask: Ask) -> ExampleRequest:
    options = options_of(cluster)
    argv = owner_argv(ask)
    place = options.model_dump(mode="json", exclude_defaults=True)
    text = json.dumps({"name": ask.run_id, "slots": options.slots, "argv": argv}, indent=1)
    return ExampleRequest(text=text, place=place, argv=argv)


def owner_argv(ask: Ask) -> list[str]:
    return [*python_argv(ask.python), "-u", "-m", OWNER, ask.run_url, JOB]


def options_of(cluster: Cluster) -> Example:
    found: Example = cluster.section("example")
    return found
