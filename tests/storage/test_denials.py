"""What a store denies, and the options that some stores ask for, as they are on the wire."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest

from launchyard.storage import files, options, retry
from launchyard.storage.errors import DeniedError, RefusedError
from launchyard.storage.stores.fsspec import classify_fsspec
from tests.storage.test_files import assert_reads_well
from tests.support.faultproxy import FaultProxy
from tests.support.faults import Answer, lists, where, writes
from tests.support.store import Bucket

DENIALS = {
    "no right": (Answer(403, "AccessDenied"), "s3:PutObject"),
    "not offered": (Answer(501, "NotImplemented"), "does not offer PutObject"),
    "not allowed": (Answer(405, "MethodNotAllowed"), "does not offer PutObject"),
    "clock": (Answer(403, "RequestTimeTooSkewed"), "The clock of this machine"),
}


@pytest.mark.s3
@pytest.mark.parametrize(("fault", "cure"), DENIALS.values(), ids=DENIALS.keys())
def test_what_is_denied_is_final_and_names_its_cure(fault: Answer, cure: str, s3: Bucket, proxy: FaultProxy) -> None:
    """Also in the midst of a run, whose budget is minutes; expired credentials are not denied."""
    files.write(f"{s3.url}/f", b"x")
    proxy.fault(fault, where(method="PUT"))
    began = time.monotonic()
    with retry.retry_budget(900), pytest.raises(DeniedError) as caught:
        files.write(f"{s3.url}/f", b"y")
    assert time.monotonic() - began < 2 * retry.DENIED_SECONDS
    assert_reads_well(str(caught.value), str(fault.code), cure)
    with retry.retry_budget(0), pytest.raises(DeniedError):
        files.create(f"{s3.url}/g", b"y")


@pytest.mark.s3
def test_a_refusal_without_a_reason_is_a_denial_if_the_credentials_are_good(s3: Bucket, proxy: FaultProxy) -> None:
    """HEAD has no body: the listing that is asked next tells."""
    files.write(f"{s3.url}/f", b"x")
    proxy.fault(Answer(403), where(method="HEAD"))
    with retry.retry_budget(0), pytest.raises(DeniedError, match="s3:GetObject"):
        files.size(f"{s3.url}/f")
    proxy.fault(Answer(403, "InvalidAccessKeyId"), lists)
    with retry.retry_budget(0), pytest.raises(RefusedError) as caught:
        files.size(f"{s3.url}/f")
    assert not isinstance(caught.value, DeniedError)


def test_denials_of_other_stores() -> None:
    class AzureError(Exception):
        status_code = 403

        def __init__(self, error_code: str) -> None:
            self.error_code = error_code

    assert classify_fsspec(AzureError("AuthorizationPermissionMismatch")) == "denied"
    assert classify_fsspec(AzureError("AuthenticationFailed")) == "refused", "a token may be renewed"
    assert classify_fsspec(OSError("Forbidden: bucket/f\nno permission")) == "denied"
    assert classify_fsspec(OSError("connection reset")) == "transient"


OPTIONS = {
    "kms": (
        {"kms_key_id": "k-1"},
        {"x-amz-server-side-encryption": "aws:kms", "x-amz-server-side-encryption-aws-kms-key-id": "k-1"},
    ),
    "acl": ({"acl": "bucket-owner-full-control"}, {"x-amz-acl": "bucket-owner-full-control"}),
    "requester pays": ({"requester_pays": True}, {"x-amz-request-payer": "requester"}),
}


@pytest.mark.s3
@pytest.mark.parametrize("said_by", ["options", "variables"])
@pytest.mark.parametrize(("given", "headers"), OPTIONS.values(), ids=OPTIONS.keys())
def test_options_of_s3_are_on_the_wire(
    given: dict[str, Any], headers: dict[str, str], said_by: str, s3: Bucket, proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """On every write of an object; whether the server knows keys of KMS does not matter here."""
    made = options.StoreOptions(**given)
    if said_by == "variables":
        for name, value in made.own_variables.items():
            monkeypatch.setenv(name, value)
        made = options.StoreOptions()
    files.set_store_options(options.StoreOptions(region="elsewhere"))  # open stores are forgotten
    files.set_store_options(made)
    with retry.retry_budget(0):
        for write in (
            lambda: files.write(f"{s3.url}/f", b"x"),
            lambda: files.create(f"{s3.url}/g", b"x"),
            lambda: files.open_write(f"{s3.url}/h").write(b"x" * (17 << 20)),
            lambda: files.rename(f"{s3.url}/f", f"{s3.url}/i"),
        ):
            with contextlib.suppress(OSError):
                write()
    with retry.retry_budget(0), contextlib.suppress(OSError):
        files.read(f"{s3.url}/f")
    if made.completed().requester_pays:
        assert all("x-amz-request-payer" in request.headers for request in proxy.requests())
    written = [request for request in proxy.requests(writes) if request.part is None and request.method != "DELETE"]
    assert len(written) >= 3
    for request in written:
        assert headers.items() <= request.headers.items(), request.target


@pytest.mark.s3
def test_anonymous_requests_carry_no_identity(s3: Bucket, proxy: FaultProxy) -> None:
    files.set_store_options(options.StoreOptions(anonymous=True))
    with retry.retry_budget(0), pytest.raises(DeniedError):
        files.read(f"{s3.url}/f")
    assert not any("authorization" in request.headers for request in proxy.requests())
