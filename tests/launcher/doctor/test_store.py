"""`launch doctor` on a store: every right that a run needs is tried, and a missing one named with its cure."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from launchyard.launcher.backends.cluster import Cluster
from launchyard.launcher.backends.findings import Finding
from launchyard.launcher.doctor.doctor import PROBE_FOLDER, create_finding, storage_findings
from launchyard.launcher.doctor.store import store_findings
from launchyard.storage.stores import s3_errors
from tests.support.faultproxy import FaultProxy
from tests.support.faults import Answer, Match, Request, lists, where
from tests.support.store import Bucket


def test_a_store_that_takes_all(tmp_path: Path) -> None:
    folder = f"memory://{tmp_path.name}"
    found = list(storage_findings(Cluster(name="c", scheduler="local", storage=folder), f"{folder}/{PROBE_FOLDER}"))
    assert [finding.what for finding in found] == ["storage", "create-only", "rights"]
    assert {finding.level for finding in found} == {"ok"}
    assert found[-1].found == "tried: range, list, look up, delete"


def _uploads(request: Request) -> bool:
    return request.method == "GET" and "uploads" in request.query


def _begins(request: Request) -> bool:
    return request.method == "POST" and "uploads" in request.query


def _deletes(request: Request) -> bool:
    return request.method == "DELETE" and "uploadId" not in request.query


def _aborts(request: Request) -> bool:
    return request.method == "DELETE" and "uploadId" in request.query


def _versions(request: Request) -> bool:
    return "versioning" in request.query


def _ranges(request: Request) -> bool:
    return request.range is not None


RIGHTS: dict[str, tuple[Match, str, str]] = {
    "range": (_ranges, "error", "s3:GetObject"),
    "list": (lists, "error", "s3:ListBucket"),
    "look up": (where(method="HEAD"), "error", "s3:GetObject"),
    "multipart": (_begins, "error", "s3:PutObject"),
    "abort": (_aborts, "warning", "s3:AbortMultipartUpload"),
    "list uploads": (_uploads, "warning", "s3:ListBucketMultipartUploads"),
    "delete": (_deletes, "warning", "s3:DeleteObject"),
    "versioning": (_versions, "ok", ""),
}


@pytest.mark.s3
def test_each_right_is_tried_and_missed_with_its_cure(
    s3: Bucket, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launchyard.storage.retry.DENIED_SECONDS", 0.0)
    assert [(found.what, found.level) for found in store_findings(f"{s3.url}/a")] == [("rights", "ok")]
    for number, (what, (match, level, right)) in enumerate(RIGHTS.items()):
        rule = proxy.fault(Answer(403, "AccessDenied"), match)
        found = {finding.what: finding for finding in store_findings(f"{s3.url}/{number}")}
        rule.off()
        assert found[what].level == level and right in found[what].fix, what
        assert what not in found["rights"].found.split(", ")
        if what not in ("list", "multipart"):  # one clock is read from a listing; abort begins an upload, too
            assert set(found) == {what, "rights"}


def test_the_guide_gives_the_rights_that_are_asked_for() -> None:
    text = (Path(__file__).parents[3] / "docs/guides/object-storage.md").read_text()
    policy = json.loads(text.partition("```json\n")[2].partition("```")[0])
    granted = {action for statement in policy["Statement"] for action in statement["Action"]}
    asked = set(re.findall(r"s3:\w+", " ".join(s3_errors.RIGHTS.values())))
    assert asked - granted == {"s3:GetBucketVersioning"} and granted <= asked


@pytest.mark.s3
def test_a_clock_and_versions_are_said(s3: Bucket, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    client = s3.server.client()
    client.put_bucket_versioning(Bucket=s3.name, VersioningConfiguration={"Status": "Enabled"})
    client.close()
    monkeypatch.setattr("launchyard.storage.stores.s3_probes.MAX_SKEW_SECONDS", -1.0)
    found = {finding.what: finding for finding in store_findings(f"{s3.url}/a")}
    assert found["versioning"].level == found["clock"].level == "warning"
    assert "NoncurrentVersionExpiration" in found["versioning"].fix and "set-ntp" in found["clock"].fix


@pytest.mark.s3
@pytest.mark.parametrize("answer", [Answer(501, "NotImplemented"), Answer(403, "AccessDenied")], ids=repr)
def test_a_store_without_create_only(answer: Any, s3: Bucket, proxy: FaultProxy) -> None:
    proxy.fault(answer, lambda request: "if-none-match" in request.headers)
    found: Finding = create_finding(f"{s3.url}/f")
    assert found.level == "error" and "cannot be created" in found.found and "If-None-Match" in found.fix
