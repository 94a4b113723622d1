"""Options for reaching a store, and the interface of a growing file. Values only."""

from __future__ import annotations

from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field


class Writer(Protocol):
    """A file that grows. It is complete after `close`; `discard` leaves nothing."""

    def write(self, raw: bytes | memoryview, /) -> object: ...
    def close(self) -> None: ...
    def discard(self) -> None: ...


class StoreOptions(BaseModel):
    """Address of a store and the identity to use there, besides the usual variables and files. No secrets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint_url: str | None = Field(default=None, description="S3: address of a server that is not AWS.")
    region: str | None = Field(default=None, description="S3: region.")
    profile: str | None = Field(default=None, description="S3: profile of the credentials and config files.")
    credentials_file: str | None = Field(default=None, description="S3: credentials file, default ~/.aws/credentials.")
