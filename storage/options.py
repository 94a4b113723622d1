"""Options for reaching a store, and the interface of a growing file. Values only."""

from __future__ import annotations

from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from launchyard.host.environment import S3_OPTIONS, variable

Acl = Literal[
    "private", "public-read", "public-read-write", "authenticated-read", "aws-exec-read", "bucket-owner-read",
    "bucket-owner-full-control",
]  # fmt: skip


class Writer(Protocol):
    """A file that grows. It is complete after `close`; `discard` leaves nothing.

    What is written may be sent later, from where it lies: it must not change before `close` has returned.
    """

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
    kms_key_id: str | None = Field(default=None, description="S3: key of KMS with which files are encrypted (SSE-KMS).")
    acl: Acl | None = Field(default=None, description="S3: canned ACL of the files that are written.")
    requester_pays: bool = Field(default=False, description="S3: agree to pay for requests to a bucket of others.")
    anonymous: bool = Field(default=False, description="S3: send no credentials, for public data.")

    def completed(self) -> StoreOptions:
        """Returns the same with the options that are left out as the variables of this process say them."""
        said = {key: value for key, name in S3_OPTIONS.items() if (value := variable(name))}
        return StoreOptions.model_validate({**said, **self.model_dump(exclude_defaults=True)})

    @property
    def own_variables(self) -> dict[str, str]:
        """The variables that say these options to other processes of ours, as far as no other tool has one for them."""
        given = {key: getattr(self, key) for key in S3_OPTIONS}
        return {S3_OPTIONS[key]: "1" if value is True else value for key, value in given.items() if value}
