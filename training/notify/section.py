"""Recipe section `notify`: who is told of a run's ends, and of a figure that is reached."""

from __future__ import annotations

import ipaddress
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from launchyard.training.sections.section import Section

NoticeKind = Literal["end", "failure", "preempted", "threshold"]
# Services whose URLs are passwords.
_SECRET_HOSTS = ("slack.com", "discord.com", "discordapp.com", "office.com", "logic.azure.com", "telegram.org")


class ThresholdConfig(Section):
    """A figure that is told of when it is reached, once in a run."""

    metric: str = Field(
        default="loss", description="Of the rows of steps, or validation_loss, or a figure of your own code."
    )
    below: float | None = Field(default=None, description="Told when it is below this.")
    above: float | None = Field(default=None, description="Told when it is above this.")

    @model_validator(mode="after")
    def _one_side(self) -> Self:
        if (self.below is None) == (self.above is None):
            raise ValueError("give one of below and above")
        return self

    def reached(self, value: float) -> bool:
        return value < self.below if self.below is not None else self.above is not None and value > self.above


class NotifyConfig(Section):
    """A webhook that is sent JSON with a `text`, as Slack and Discord take it. Default: none."""

    webhook: str | None = Field(
        default=None, description="URL, https or of this machine; one that holds a secret belongs into webhook_env."
    )
    webhook_env: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Environment variable that holds the URL; it reaches the job as credentials of a store do.",
    )
    on: list[NoticeKind] = Field(
        default=["end", "failure", "threshold"],
        description="What is told: end (completed, or stopped), failure (it ended as failed), preempted (saved, and "
        "goes on elsewhere), threshold.",
    )
    threshold: ThresholdConfig | None = Field(default=None, description="A figure to be told of.")

    @field_validator("webhook")
    @classmethod
    def _is_open(cls, url: str | None) -> str | None:
        if url is None:
            return None
        if problem := url_problem(url):
            raise ValueError(problem)
        parts = urlsplit(url)
        host = parts.hostname or ""
        secret = parts.username or parts.query or any(host == one or host.endswith(f".{one}") for one in _SECRET_HOSTS)
        if secret:  # the recipe is kept, shown and copied
            what = "this URL is, or holds, a password, and recipes hold none"
            raise ValueError(f"{what}; export it, and name the variable in notify.webhook_env")
        return url

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.webhook is None) == (self.webhook_env is None):
            raise ValueError("give one of webhook and webhook_env")
        return self


def url_problem(url: str) -> str | None:
    """The reason why nothing is sent there, without the URL; None if it is one to send to."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "not a URL"
    if parts.scheme == "https" and parts.hostname:
        return None
    if parts.scheme == "http" and _is_loopback(parts.hostname or ""):
        return None
    return "must be a URL of https://, or of http:// on this machine (127.0.0.1, localhost)"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
