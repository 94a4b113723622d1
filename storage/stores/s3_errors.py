"""Errors of S3: their kind, their message, and the cure of those that no retry changes. Makes no request."""

from __future__ import annotations

import datetime
import ssl
from concurrent.futures import CancelledError
from email.utils import parsedate_to_datetime

from launchyard.storage.retry import ErrorKind, classify_status, one_line

_TRANSIENT = {
    "BadDigest", "IncompleteBody", "InternalError", "OperationAborted", "ConditionalRequestConflict", "RequestTimeout",
    "SlowDown", "ServiceUnavailable", "Throttling", "ThrottlingException", "TooManyRequests",
    "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch",
}  # fmt: skip
_REFUSED = {"NoSuchBucket", "ExpiredToken", "InvalidToken", "TokenRefreshRequired", "AuthorizationHeaderMalformed"}
SKEWED = "RequestTimeTooSkewed"
_DENIED = {
    "AccessDenied", "AllAccessDisabled", "AccountProblem", "NotSignedUp", "InvalidPayer", "InvalidObjectState", SKEWED,
}  # fmt: skip
_GET = "s3:GetObject (and s3:ListBucket, without which a store refuses files that do not exist)"
# The right that each operation needs, as a policy of AWS names it.
RIGHTS = {
    "GetObject": _GET,
    "HeadObject": _GET,
    "PutObject": "s3:PutObject",
    "CopyObject": "s3:GetObject and s3:PutObject",
    "DeleteObject": "s3:DeleteObject",
    "ListObjectsV2": "s3:ListBucket",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "GetBucketVersioning": "s3:GetBucketVersioning",
}


class NoRightError(PermissionError):
    """A refusal without a reason, of credentials that are good for other requests."""

    def __init__(self, message: str, operation: str) -> None:
        super().__init__(message)
        self.operation = operation


def classify_s3(error: BaseException) -> ErrorKind:
    """Returns the kind of an error of a call, out of whatever layer it comes."""
    if isinstance(error, NoRightError):
        return "denied"
    status, code = status_of(error)
    if code in _TRANSIENT:
        return "transient"
    if code in _REFUSED:
        return "refused"
    if code in _DENIED:
        return "denied"
    if status == 400 and code in ("", "400"):  # AWS' response to a HEAD whose token has expired: it has no body
        return "refused"
    if status == 403:  # wrong or expired keys, or the response to a HEAD, which gives no reason
        return "refused"
    if status is not None:
        return classify_status(status)
    return _classify_unanswered(error)


def _classify_unanswered(error: BaseException) -> ErrorKind:
    """Of an error that is no response of the store."""
    from aiohttp import ClientError
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError

    if _untrusted(error):
        return "denied"
    if isinstance(error, (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError)):
        return "refused"
    broken = (OSError, TimeoutError, EOFError, CancelledError, ClientError, boto.HTTPClientError, boto.ConnectionError)
    damaged = (
        boto.IncompleteReadError,
        boto.ResponseStreamingError,
        boto.ChecksumError,
        boto.FlexibleChecksumError,
        ResponseParserError,
    )
    return "transient" if isinstance(error, broken + damaged) else "final"


def status_of(error: BaseException | None) -> tuple[int | None, str]:
    """Returns the HTTP status and S3's code of an error, also of one that s3fs has translated."""
    response = getattr(_answer(error), "response", None)
    if response is None:
        return None, ""
    return response.get("ResponseMetadata", {}).get("HTTPStatusCode"), str(response["Error"].get("Code", ""))


def _answer(error: BaseException | None) -> BaseException | None:
    """Returns botocore's error with the store's response out of a chain of errors; None without a response."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict) and "Error" in response:
            return error
        error = error.__cause__
    return None


def _untrusted(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    """Returns why the certificate of the store is not trusted, out of a chain of errors; None if that is not it."""
    while error is not None and not getattr(error, "verify_message", ""):
        error = getattr(error, "certificate_error", None) or error.__cause__ or error.__context__
    return error if isinstance(error, ssl.SSLCertVerificationError) else None


def describe(error: BaseException) -> str:
    """Returns the message of the store or the state of the connection, without the libraries' own noise."""
    from aiohttp import ClientPayloadError

    status, code = status_of(error)
    if status is not None:
        message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return f"{one_line(message)} ({code or status})"
    if isinstance(error, ClientPayloadError):
        return "the connection ended in the middle of the answer"
    if untrusted := _untrusted(error):
        return f"the store's certificate is not trusted here: {untrusted.verify_message}"
    return str(error)


def cure_of(error: BaseException) -> str:
    """Returns a sentence about what ends an error that no retry changes."""
    _, code = status_of(error)
    if _untrusted(error):
        return (
            "Of an authority of your own, AWS_CA_BUNDLE names the file with the certificate; a wrong clock makes a "
            "good one invalid"
        )
    if code == SKEWED:
        return f"{_skew(_answer(error))}: set it (timedatectl set-ntp true, chronyc makestep), then do the same again"
    operation = getattr(error, "operation", None) or str(getattr(_answer(error), "operation_name", ""))
    right = RIGHTS.get(operation, "the right to do so")
    if classify_s3(error) == "unsupported":
        how = " as a run needs it, with create-only files (If-None-Match)" if operation == "PutObject" else ""
        return f"This store does not offer {operation or 'it'}{how}; `launch doctor` tries all that a run needs"
    if "kms:" in str(error):
        return "Let this identity use the bucket's key: kms:GenerateDataKey and kms:Decrypt"
    if code == "InvalidPayer":
        return "Whoever reads this bucket pays for it: storage.requester_pays in the cluster file"
    return f"Let this identity have {right} there; docs/guides/object-storage.md has the least policy of a run"


def _skew(error: BaseException | None) -> str:
    """By how much this machine's clock is wrong by the store's, as the beginning of a sentence."""
    try:
        theirs = parsedate_to_datetime(getattr(error, "response", {})["ResponseMetadata"]["HTTPHeaders"]["date"])
    except (KeyError, TypeError, ValueError):
        return "The clock of this machine is wrong"
    ahead = (datetime.datetime.now(datetime.UTC) - theirs).total_seconds()
    if abs(ahead) < 1:
        return "The clock of this machine or of the store is wrong"
    return f"The clock of this machine is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the store's"
