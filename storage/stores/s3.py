"""S3 and stores with its API: single calls with their own timeouts, and uploads in parallel parts.

s3fs provides the session, the credentials and the event loop; retries are ours (storage/retry.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from launchyard.host.environment import variable
from launchyard.host.packages import install_command
from launchyard.host.priority import step_back
from launchyard.storage.errors import DeniedError
from launchyard.storage.options import StoreOptions, Writer
from launchyard.storage.retry import Retrier, call_timeout, one_line
from launchyard.storage.stores.fsspec import ScatterBuffer
from launchyard.storage.stores.private_calls import send_request
from launchyard.storage.stores.s3_errors import NoRightError, classify_s3, cure_of, describe, status_of
from launchyard.storage.stores.s3_parts import PartWriter
from launchyard.storage.stores.s3_probes import probes_of

UPLOAD_PART_BYTES = 16 << 20
MAX_PARTS = 9_000  # S3 allows 10,000
_CONNECT_SECONDS = 5
_READ_SECONDS = 20  # without a byte
CONNECTIONS = 32
RENEW_SECONDS = 2.0
BLOCK_BYTES = 1 << 20


class S3Store:
    def __init__(self, options: StoreOptions) -> None:
        self._options = options.completed()
        self._fs = self._connect()
        self._connected = time.monotonic()
        self.retry = Retrier(classify_s3, self._renew, describe, cure_of).call

    def _connect(self) -> Any:
        try:
            import s3fs
            from aiobotocore.session import AioSession
        except ModuleNotFoundError as error:
            raise ValueError(
                f"s3:// needs the package {error.name}, which is not installed: {install_command('s3')}"
            ) from error
        session = AioSession(profile=self._options.profile)
        if self._options.credentials_file:
            session.set_config_variable("credentials_file", self._options.credentials_file)
        self._summed = _sums_whole_files(session, self._options)
        fs = s3fs.S3FileSystem(
            session=session,
            endpoint_url=self._options.endpoint_url,
            client_kwargs={"region_name": self._options.region} if self._options.region else {},
            config_kwargs={
                "connect_timeout": _CONNECT_SECONDS,
                "read_timeout": _READ_SECONDS,
                "max_pool_connections": CONNECTIONS,
                "retries": {"max_attempts": 0},
                **({"request_checksum_calculation": "when_required"} if self._summed else {}),
            },
            s3_additional_kwargs=_request_options(self._options),
            requester_pays=self._options.requester_pays,
            anon=self._options.anonymous,
            skip_instance_cache=True,
            use_listings_cache=False,
        )
        fs.retries = 1
        fs.loop.call_soon_threadsafe(step_back)  # it signs, checks and copies all that comes and goes
        return fs

    def _renew(self) -> None:
        """Reads the credentials anew from their source. It costs half a second, and many threads may ask at once."""
        if time.monotonic() - self._connected > RENEW_SECONDS:
            self._connected = time.monotonic()
            self._fs = self._connect()

    # -- calls -------------------------------------------------------------------------------------------------------
    def call(self, method: str, path: str, *, n_bytes: int = 0, **arguments: Any) -> Any:
        """Makes one request of the S3 API on the object or folder of a URL, once."""
        bucket, key = split(path)
        if "Prefix" not in arguments:
            arguments["Key"] = key
        return self._run(send_request(self._fs, method, Bucket=bucket, **arguments), call_timeout(n_bytes))

    def _run(self, work: Coroutine[Any, Any, Any], seconds: float) -> Any:
        """Runs a coroutine on s3fs' event loop; after the timeout it is cancelled, and its connection with it.

        Raises ValueError for a configuration with which no request can be made, such as a missing profile.
        """
        from botocore.exceptions import BotoCoreError

        future = asyncio.run_coroutine_threadsafe(work, self._fs.loop)
        began = time.monotonic()
        try:
            return future.result(seconds)
        except (BotoCoreError, ValueError) as error:
            if classify_s3(error) != "final":
                raise
            where = "AWS_* variables, ~/.aws, and `storage` of the cluster file decide it"
            raise ValueError(f"S3 cannot be asked as it is configured: {one_line(str(error))}; {where}") from error
        except TimeoutError as error:
            if str(error):  # the store's own message
                raise
            raise TimeoutError(f"no end after {time.monotonic() - began:.0f} s") from error
        finally:
            future.cancel()

    def attempt(self, what: str, method: str, path: str, *, n_bytes: int = 0, **arguments: Any) -> Any:
        """Makes a request, retried until it succeeds."""
        return self.retry(what, path, lambda: self.call(method, path, n_bytes=n_bytes, **arguments))

    # -- reading -----------------------------------------------------------------------------------------------------
    def exists(self, path: str) -> bool:
        response, is_folder = self._stat(path)
        return is_folder or response is not None

    def _stat(self, path: str) -> tuple[Any, bool]:
        """Returns the response to HEAD (None if there is no such object) and then True for a folder of that name."""
        _, key = split(path)

        def look_up() -> tuple[Any, bool]:
            refusal: Exception | None = None
            try:
                if key:
                    return self.call("head_object", path), False
            except Exception as error:
                if classify_s3(error) not in ("missing", "refused"):
                    raise
                refusal = error if classify_s3(error) == "refused" else None
            # HEAD gives no reason for a refusal, and does not distinguish a missing bucket from a missing object.
            found = self.call("list_objects_v2", path, Prefix=f"{key}/" if key else "", MaxKeys=1)
            if refusal is not None and status_of(refusal)[0] == 403:  # of credentials that the listing shows to be good
                raise NoRightError(str(refusal), "HeadObject") from refusal
            if refusal is not None:
                raise refusal
            return None, bool(found.get("KeyCount") or found.get("Contents"))

        result: tuple[Any, bool] = self.retry("look up", path, look_up)
        return result

    def _head(self, path: str) -> Any:
        response, _ = self._stat(path)
        if response is None:
            raise FileNotFoundError(2, "No such file", path)
        return response

    def size(self, path: str) -> int:
        return int(self._head(path)["ContentLength"])

    def age(self, path: str) -> float:
        """By the store's clock: its time of the response less its time of the last write."""
        response = self._head(path)
        return float((_date_of(response) - response["LastModified"]).total_seconds())

    def listdir(self, path: str) -> list[str]:
        return sorted(self.list_ages(path))

    def list_ages(self, path: str) -> dict[str, float | None]:
        """As `age` has them, at the time of the listing; None for a folder."""
        prefix = f"{split(path)[1]}/".lstrip("/")
        ages: dict[str, float | None] = {}
        more: dict[str, Any] = {}
        while True:
            page = self.attempt("list", "list_objects_v2", path, Prefix=prefix, Delimiter="/", **more)
            found: dict[str, float | None] = {entry["Prefix"]: None for entry in page.get("CommonPrefixes", [])}
            written = {entry["Key"]: entry["LastModified"] for entry in page.get("Contents", [])}
            if written:
                now = _date_of(page)
                found |= {key: float((now - at).total_seconds()) for key, at in written.items()}
            ages |= {name[len(prefix) :].rstrip("/"): age for name, age in found.items() if name != prefix}
            if not page.get("IsTruncated"):
                return ages
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def read(self, path: str, start: int, length: int | None) -> bytes:
        if length == 0:
            return b""

        async def consume(body: Any) -> bytes:
            return bytes(await body.read())

        return bytes(self.retry("read", path, lambda: self._get(path, start, length, consume)) or b"")

    def read_into(self, path: str, start: int, *targets: memoryview) -> int:
        length = sum(map(len, targets))
        if not length:
            return 0

        async def consume(body: Any) -> int:
            buffer = ScatterBuffer(targets)
            while raw := await body.read(BLOCK_BYTES):
                buffer.write(raw)
            return buffer.count

        return int(self.retry("read", path, lambda: self._get(path, start, length, consume)) or 0)

    def _get(self, path: str, start: int, length: int | None, consume: Callable[[Any], Awaitable[Any]]) -> Any:
        """Returns the value of `consume` for a body; None where the object has no such bytes."""
        bucket, key = split(path)
        # A whole object comes with its checksum, which botocore checks; that of a range states its length twice.
        end = "" if length is None else start + length - 1
        span = {"Range": f"bytes={start}-{end}"} if start or length is not None else {}

        async def get() -> Any:
            async with asyncio.timeout(call_timeout(0)):
                response = await send_request(self._fs, "get_object", Bucket=bucket, Key=key, **span)
            expected = _length_of(response)
            async with asyncio.timeout(call_timeout(expected)), response["Body"] as body:
                got = await consume(body)
            count = got if isinstance(got, int) else len(got)
            if count != expected:
                raise ConnectionError(f"the body ended after {count} of {expected} bytes")
            return got

        try:
            return self._run(get(), 2 * call_timeout(length or (1 << 30)))
        except Exception as error:
            if status_of(error)[0] == 416:
                return None
            raise

    # -- writing -----------------------------------------------------------------------------------------------------
    def write(self, path: str, raw: bytes) -> None:
        if len(raw) <= UPLOAD_PART_BYTES:
            self.attempt("write", "put_object", path, n_bytes=len(raw), Body=raw, **self._summed)
            return
        writer = self.open_write(path, size=len(raw))
        try:
            writer.write(raw)
            writer.close()
        except BaseException:
            writer.discard()
            raise

    def create(self, path: str, raw: bytes) -> None:
        try:
            self.attempt("create", "put_object", path, n_bytes=len(raw), Body=raw, IfNoneMatch="*", **self._summed)
        except FileExistsError:
            if self.read(path, 0, None) != raw:  # else it is ours: the response to our first try was lost
                raise

    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.attempt("remove", "delete_object", path)

    def rename(self, old: str, new: str) -> None:
        """Copies one object of at most 5 GB, the limit of S3 for one request; removes the old one where it may."""
        bucket, key = split(old)
        self.attempt("copy", "copy_object", new, n_bytes=self.size(old), CopySource={"Bucket": bucket, "Key": key})
        with contextlib.suppress(DeniedError):  # it costs room
            self.remove(old)

    def open_write(self, path: str, *, size: int | None) -> Writer:
        return PartWriter(self, path, part_bytes=max(UPLOAD_PART_BYTES, math.ceil((size or 0) / MAX_PARTS)))

    def sweep_uploads(self, folder: str) -> int:
        """Aborts uploads begun under a folder and never completed: S3 keeps their parts, invisible and paid for."""
        prefix = f"{split(folder)[1]}/"
        found = self.attempt("list uploads of", "list_multipart_uploads", folder, Prefix=prefix).get("Uploads") or []
        bucket = split(folder)[0]
        for upload in found:
            if upload["Key"].startswith(prefix):  # some servers do not filter
                with contextlib.suppress(FileNotFoundError):
                    path = f"s3://{bucket}/{upload['Key']}"
                    self.attempt("abort", "abort_multipart_upload", path, UploadId=upload["UploadId"])
        return len(found)

    def probes(self, folder: str) -> dict[str, Callable[[], str]]:
        return probes_of(self.attempt, folder, f"{split(folder)[1]}/")


def split(path: str) -> tuple[str, str]:
    """Returns bucket and key of s3://bucket/key."""
    bucket, _, key = path.partition("://")[2].partition("/")
    if not bucket:
        raise ValueError(f"{path}: a URL of S3 is s3://BUCKET/KEY")
    return bucket, key.rstrip("/")


def _request_options(options: StoreOptions) -> dict[str, str]:
    """Returns arguments of requests; s3fs leaves them out of those that do not know them."""
    found = {"ACL": options.acl, "SSEKMSKeyId": options.kms_key_id}
    if options.kms_key_id:
        found["ServerSideEncryption"] = "aws:kms"
    return {name: value for name, value in found.items() if value is not None}


def _sums_whole_files(session: Any, options: StoreOptions) -> dict[str, str]:
    """Returns what asks for the checksum of a body, where botocore is to send none by itself.

    Over http a body is signed by its SHA-256, which the server checks; a CRC-32 beside it is a tenth of the time of a
    large upload. A small file has one all the same: it is kept, and read by it. Over https no body is signed.
    """
    from botocore.exceptions import BotoCoreError

    endpoint = options.endpoint_url or variable("AWS_ENDPOINT_URL_S3") or variable("AWS_ENDPOINT_URL") or ""
    if not endpoint.startswith("http:"):
        return {}
    try:
        wanted = session.get_config_variable("request_checksum_calculation") or ""
    except BotoCoreError:  # no such profile, as the first request is going to say
        return {}
    return {"ChecksumAlgorithm": "CRC32"} if wanted.lower() == "when_supported" else {}


def _length_of(response: dict[str, Any]) -> int:
    """Returns the number of bytes in the body of a response."""
    first, _, last = str(response.get("ContentRange", "")).removeprefix("bytes ").partition("/")[0].partition("-")
    return int(last) - int(first) + 1 if last else int(response["ContentLength"])


def _date_of(response: Mapping[str, Mapping[str, Mapping[str, str]]]) -> datetime:
    """Of a response, by the store's clock."""
    return parsedate_to_datetime(response["ResponseMetadata"]["HTTPHeaders"]["date"])
