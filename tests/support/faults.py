"""What can go wrong between an S3 client and its server, as values; see tests/support/faultproxy.py, which does it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

When = Literal["before", "mid-body", "after"]
CODES = {400: "RequestTimeout", 403: "InvalidAccessKeyId", 404: "NoSuchBucket", 500: "InternalError", 503: "SlowDown"}


# -- what is asked ---------------------------------------------------------------------------------------------------
@dataclass
class Request:
    """One request, and what became of it; bytes are those of the bodies that passed."""

    number: int
    method: str
    target: str
    headers: dict[str, str]
    status: int | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def bucket(self) -> str:
        return unquote(urlsplit(self.target).path).lstrip("/").partition("/")[0]

    @property
    def key(self) -> str:
        return unquote(urlsplit(self.target).path).lstrip("/").partition("/")[2]

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.target).query, keep_blank_values=True))

    @property
    def range(self) -> str | None:
        return self.headers.get("range")

    @property
    def part(self) -> int | None:
        """Number of the part that this uploads, from 1."""
        found = self.query.get("partNumber")
        return int(found) if found and self.method == "PUT" else None

    @property
    def is_list(self) -> bool:
        """A listing of objects."""
        return self.method == "GET" and not self.key and not {"uploads", "location", "versioning"} & set(self.query)

    @property
    def completes(self) -> bool:
        """The end of a multipart upload: the object appears."""
        return self.method == "POST" and "uploadId" in self.query


Match = Callable[[Request], bool]


def where(*, method: str | None = None, key: str | None = None, part: int | None = None) -> Match:
    """Requests of this method, whose key this regular expression finds something in, with this part."""

    def matches(request: Request) -> bool:
        return (
            (method is None or request.method == method)
            and (key is None or re.search(key, request.key) is not None)
            and (part is None or request.part == part)
        )

    return matches


def writes(request: Request) -> bool:
    return request.method in ("PUT", "POST", "DELETE")


def lists(request: Request) -> bool:
    return request.is_list


# -- what goes wrong -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Answer:
    """An error of S3 instead of the server's answer. `done`: the server has done it, and only its answer is lost."""

    status: int
    code: str | None = None
    done: bool = False


@dataclass(frozen=True)
class Reset:
    """The connection is reset after this share of the body that goes up (to the server) or down."""

    up: float | None = None
    down: float | None = None


@dataclass(frozen=True)
class Truncate:
    """Only this share of the body comes down, then a clean end. `lie`: with a Content-Length that fits it."""

    keep: float = 0.5
    lie: bool = False


@dataclass(frozen=True)
class Flip:
    """One bit of the body that comes down is another; `at` is where, as a share."""

    at: float = 0.5


@dataclass(frozen=True)
class Slow:
    """Bodies pass at so many bytes a second."""

    up: float | None = None
    down: float | None = None


@dataclass(frozen=True)
class Stall:
    """Nothing passes for some seconds, at this point of a request."""

    seconds: float
    when: When = "before"


Fault = Answer | Reset | Truncate | Flip | Slow | Stall


# -- answers of the proxy's own ----------------------------------------------------------------------------------------
def error_of(answer: Answer, request: Request) -> tuple[int, bytes]:
    code = answer.code or CODES.get(answer.status, "InternalError")
    said = f"<Error><Code>{code}</Code><Message>The proxy says so</Message><Resource>{escape(request.key)}</Resource>"
    return answer.status, f'<?xml version="1.0" encoding="UTF-8"?>{said}</Error>'.encode()


@dataclass(frozen=True)
class Listed:
    """An object as a listing shows it."""

    key: str
    size: int
    etag: str
    modified: str


def snapshot(client: Any, bucket: str) -> list[Listed]:
    """All that a bucket holds now, for `lag`."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return sorted(
        (
            Listed(entry["Key"], entry["Size"], entry["ETag"], f"{entry['LastModified']:%Y-%m-%dT%H:%M:%S.000Z}")
            for page in pages
            for entry in page.get("Contents", [])
        ),
        key=lambda listed: listed.key,
    )


def listing_of(objects: list[Listed], request: Request) -> bytes:
    """ListObjectsV2 of these objects; all of them on one page."""
    prefix, delimiter = request.query.get("prefix", ""), request.query.get("delimiter", "")
    found = [listed for listed in objects if listed.key.startswith(prefix)]
    prefixes: dict[str, None] = {}
    contents = []
    for listed in found:
        head, cut, _ = listed.key[len(prefix) :].partition(delimiter) if delimiter else (listed.key, "", "")
        if cut:
            prefixes[f"{prefix}{head}{cut}"] = None
        else:
            contents.append(listed)
    parts = [f"<Name>{request.bucket}</Name><Prefix>{escape(prefix)}</Prefix><MaxKeys>1000</MaxKeys>"]
    parts += [f"<KeyCount>{len(contents) + len(prefixes)}</KeyCount><IsTruncated>false</IsTruncated>"]
    parts += [
        f"<Contents><Key>{escape(one.key)}</Key><LastModified>{one.modified}</LastModified><ETag>{escape(one.etag)}"
        f"</ETag><Size>{one.size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for one in contents
    ]
    parts += [f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in prefixes]
    space = "http://s3.amazonaws.com/doc/2006-03-01/"
    return f'<?xml version="1.0"?><ListBucketResult xmlns="{space}">{"".join(parts)}</ListBucketResult>'.encode()
