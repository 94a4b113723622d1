"""How a store is reached, and what a growing file can do. Values only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    pass


class Writer(Protocol):
    """A file that grows. It is there, as a whole, after `close`; `discard` leaves nothing."""

    def write(self, raw: bytes | memoryview, /) -> Any: ...
    def close(self) -> None: ...
    def discard(self) -> None: ...


class StoreOptions(BaseModel):
    """Where a store is and who asks, besides what its usual variables and files say. No secrets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint_url: str | None = Field(default=None, description="S3: address of a server that is not AWS.")
    region: str | None = Field(default=None, description="S3: region.")
    profile: str | None = Field(default=None, description="S3: profile of the credentials and config files.")
    credentials_file: str | None = Field(default=None, description="S3: credentials file, default ~/.aws/credentials.")
