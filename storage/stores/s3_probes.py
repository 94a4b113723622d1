"""Requests with which `launch doctor` tries S3: uploads in parts, the clock, versioning. Plain files need none here."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any

SendRequest = Callable[..., dict[str, Any]]  # the response to one request
MAX_SKEW_SECONDS = 60.0  # S3 refuses 15 minutes


def probes_of(attempt: SendRequest, folder: str, prefix: str) -> dict[str, Callable[[], str]]:
    """`attempt` makes a request. `folder` is a URL, and `prefix` what the keys in it begin with."""
    return {
        "multipart": partial(_upload, attempt, f"{folder}/parts"),
        "abort": partial(_abort, attempt, f"{folder}/aborted"),
        "list uploads": partial(_list_uploads, attempt, folder, prefix),
        "clock": partial(_skew, attempt, folder, prefix),
        "versioning": partial(_versioning, attempt, folder),
    }


def _begin(attempt: SendRequest, path: str) -> str:
    return str(attempt("begin to write", "create_multipart_upload", path)["UploadId"])


def _upload(attempt: SendRequest, path: str) -> str:
    upload = _begin(attempt, path)
    part = attempt("write", "upload_part", path, UploadId=upload, PartNumber=1, Body=b"1")
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    attempt("complete", "complete_multipart_upload", path, UploadId=upload, MultipartUpload=parts)
    return ""


def _abort(attempt: SendRequest, path: str) -> str:
    attempt("abort", "abort_multipart_upload", path, UploadId=_begin(attempt, path))
    return ""


def _list_uploads(attempt: SendRequest, folder: str, prefix: str) -> str:
    attempt("list uploads of", "list_multipart_uploads", folder, Prefix=prefix)
    return ""


def _skew(attempt: SendRequest, folder: str, prefix: str) -> str:
    response = attempt("list", "list_objects_v2", folder, Prefix=prefix, MaxKeys=1)
    theirs = response["ResponseMetadata"]["HTTPHeaders"].get("date")
    if theirs is None:
        return ""
    ahead = (datetime.now(UTC) - parsedate_to_datetime(theirs)).total_seconds()
    if abs(ahead) <= MAX_SKEW_SECONDS:
        return ""
    return f"this machine's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the store's"


def _versioning(attempt: SendRequest, folder: str) -> str:
    state = attempt("ask for versioning of", "get_bucket_versioning", folder).get("Status")
    return "the bucket keeps every version of a file" if state == "Enabled" else ""
