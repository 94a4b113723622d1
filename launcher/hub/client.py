"""The Hugging Face hub over HTTP: what a repository holds, and the bytes of a file. Knows no folder of ours.

huggingface_hub 2.4 removes a partial file when its process ends, and does not compare what came with its hash; so the
bytes are fetched here, by its session, its addresses and its token.
"""

from __future__ import annotations

import contextlib
import difflib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from launchyard.errors import LaunchError, UserError
from launchyard.host.environment import variable
from launchyard.storage.errors import StoreError
from launchyard.storage.hub_cache import RepoKind
from launchyard.storage.redact import redact
from launchyard.storage.retry import ErrorKind, Retrier, classify_status, retry_budget

TIMEOUT_SECONDS = 30.0  # without a byte
HUB_FIRST_SECONDS = 10.0  # for tries of a request while no hub has answered: there may be no network
HUB_BUDGET_SECONDS = 120.0  # for tries of one request that bring nothing, later
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class HubFile:
    """`etag`: SHA-256 of a file that the hub keeps in its large storage, else the hash of a git blob."""

    path: str
    size: int
    etag: str


@dataclass(frozen=True)
class HubModel:
    """A repository at one commit: of a model, or of a set of data."""

    repo: str
    commit: str
    files: tuple[HubFile, ...]
    kind: RepoKind = "model"


class _CutError(Exception):
    """A connection that failed or ended; with a status, a server that asks for a later try."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class HubClient:
    """One hub: HF_ENDPOINT, else huggingface.co."""

    def __init__(self, kind: RepoKind = "model") -> None:
        from huggingface_hub import HfApi

        self.kind: RepoKind = kind
        self._noun = "model" if kind == "model" else "set of data"
        self.endpoint = (variable("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        self._api = HfApi(endpoint=self.endpoint, library_name="launchyard")
        self._answered = False
        self._retrier = Retrier(_kind_of, describe=lambda error: redact(str(error)))

    def model(self, repo: str, revision: str) -> HubModel:
        """Returns what a repository holds. UserError: not there, or not for this user. StoreError: no answer."""
        what = f"list the files of {repo}"
        ask = self._api.model_info if self.kind == "model" else self._api.dataset_info
        info = self._call(
            what,
            lambda: ask(repo, revision=revision, files_metadata=True, timeout=TIMEOUT_SECONDS),
            repo,
            revision,
        )
        files = []
        for one in info.siblings or ():
            size = one.lfs.size if one.lfs else one.size
            etag = one.lfs.sha256 if one.lfs else one.blob_id
            if size is None or etag is None:  # a mirror that lists names only
                size, etag = self._metadata(repo, info.sha, one.rfilename)
            files.append(HubFile(one.rfilename, size, etag))
        return HubModel(repo, info.sha, tuple(files), self.kind)

    def fetch(self, model: HubModel, file: HubFile, start: int) -> Iterator[tuple[int, bytes]]:
        """Yields the bytes of a file from `start` on, each piece with its place in the file.

        A connection that is cut is opened again where it ended; the place goes back to 0 if the server cannot do that.
        """
        what = f"fetch {file.path}"
        while start < file.size:
            pieces = self._call(what, partial(self._first_piece, model, file, start), model.repo, model.commit)
            with contextlib.suppress(_CutError):
                for at, piece in pieces:
                    start = at + len(piece)
                    yield at, piece

    def _first_piece(self, model: HubModel, file: HubFile, start: int) -> Iterator[tuple[int, bytes]]:
        """The pieces of one answer, of which the first is there: else the try failed."""
        pieces = self._answer(model, file, start)
        first = next(pieces, None)
        if first is None:
            raise _CutError("the answer was empty")
        return _chain(first, pieces)

    def _answer(self, model: HubModel, file: HubFile, start: int) -> Iterator[tuple[int, bytes]]:
        import httpx2
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

        url = hf_hub_url(model.repo, file.path, repo_type=self.kind, revision=model.commit, endpoint=self.endpoint)
        headers = build_hf_headers(library_name="launchyard") | {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        try:
            with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_SECONDS) as response:
                if response.status_code >= 400:
                    response.read()
                hf_raise_for_status(response)
                at = start if response.status_code == 206 else 0
                for piece in response.iter_bytes():
                    yield at, piece
                    at += len(piece)
        except httpx2.TransportError as error:
            raise _CutError(str(error) or type(error).__name__) from error

    def _metadata(self, repo: str, commit: str, path: str) -> tuple[int, str]:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.utils import build_hf_headers

        url = hf_hub_url(repo, path, repo_type=self.kind, revision=commit, endpoint=self.endpoint)
        found = self._call(
            f"ask for {path}",
            lambda: get_hf_file_metadata(url, headers=build_hf_headers(), endpoint=self.endpoint),
            repo,
            commit,
        )
        if found.size is None or found.etag is None:
            raise LaunchError(f"{self.endpoint} says neither the size nor the hash of {repo}/{path}: it is no hub")
        return found.size, found.etag

    def _call(self, what: str, action: Callable[[], _Result], repo: str, revision: str) -> _Result:
        def tried() -> _Result:
            import httpx2
            from huggingface_hub.errors import HfHubHTTPError

            try:
                result = action()
            except httpx2.TransportError as error:
                raise _CutError(str(error) or type(error).__name__) from error
            except HfHubHTTPError as error:
                status = error.response.status_code
                if classify_status(status) == "transient":
                    _wait_as_asked(error.response.headers.get("Retry-After"))
                    raise _CutError(_status_text(status), status) from error
                raise self._refusal(error, repo, revision) from error
            self._answered = True
            return result

        with retry_budget(HUB_BUDGET_SECONDS if self._answered else HUB_FIRST_SECONDS):
            try:
                return self._retrier.call(what, self.endpoint, tried)
            except StoreError as error:
                raise self._without_answer(what, error) from error

    def _without_answer(self, what: str, error: StoreError) -> LaunchError:
        last = error.__cause__
        if isinstance(last, _CutError) and last.status is not None:
            hint = "the hub is busy or has a fault; the same command goes on later, HF_ENDPOINT names a mirror"
        else:
            hint = (
                "is there a network, and the right proxy (HTTPS_PROXY)? HF_ENDPOINT names another hub or a mirror. A "
                "folder that another machine has downloaded can be copied here and named by its path"
            )
        return LaunchError(f"{self.endpoint}: could not {what}: {redact(str(last or error))}", hint=hint)

    # -- refusals ----------------------------------------------------------------------------------------------------
    def _refusal(self, error: Exception, repo: str, revision: str) -> UserError:
        """What a person can do about an answer of 4xx."""
        from huggingface_hub import get_token
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RevisionNotFoundError

        assert isinstance(error, HfHubHTTPError)
        page = f"{self.endpoint}/{'' if self.kind == 'model' else 'datasets/'}{repo}"
        status = error.response.status_code
        token = bool(get_token())
        if isinstance(error, GatedRepoError):
            give = "" if token else ", then set HF_TOKEN to a token of that account (or run `hf auth login`)"
            return UserError(
                f"{repo} is gated: its owner gives it to those who accept its licence (HTTP {status})",
                hint=f"accept it at {page}{give}",
            )
        if isinstance(error, RevisionNotFoundError):
            return UserError(f"{repo} has no revision {revision}{self._near_revision(repo, revision)}", hint=page)
        if status in (401, 404):
            private = "or this token may not see it" if token else "or it is private: set HF_TOKEN to a token that may"
            return UserError(
                f"{self.endpoint} has no {self._noun} {repo}{self._near_model(repo)}, {private} (HTTP {status})",
                hint="a name of the hub is ORG/NAME, with its capitals",
            )
        if status == 403:
            return UserError(
                f"{self.endpoint} refuses {repo} (HTTP 403)",
                hint=f"{'check the rights of the token in HF_TOKEN' if token else 'set HF_TOKEN'}; its page is {page}",
            )
        return UserError(f"{self.endpoint} refuses {repo}: {redact(str(error).splitlines()[0])} (HTTP {status})")

    def _near_model(self, repo: str) -> str:
        author, _, name = repo.rpartition("/")
        ask = self._api.list_models if self.kind == "model" else self._api.list_datasets
        with contextlib.suppress(Exception):  # only a help
            found = [one.id for one in ask(author=author or None, search=None if author else name, limit=200)]
            return _did_you_mean(repo, found)
        return ""

    def _near_revision(self, repo: str, revision: str) -> str:
        with contextlib.suppress(Exception):  # only a help
            refs = self._api.list_repo_refs(repo, repo_type=self.kind)
            names = [one.name for one in [*refs.branches, *refs.tags]]
            return _did_you_mean(revision, names) or f"; it has {', '.join(names[:10])}"
        return ""


def _chain(first: tuple[int, bytes], rest: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    yield first
    yield from rest


def _did_you_mean(name: str, names: list[str]) -> str:
    by_lower = {one.lower(): one for one in names}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.7)
    return f"; did you mean {by_lower[near[0]]}?" if near else ""


def _kind_of(error: BaseException) -> ErrorKind:
    return "transient" if isinstance(error, _CutError) else "final"


def _status_text(status: int) -> str:
    return f"HTTP {status}, too many requests" if status == 429 else f"HTTP {status}"


def _wait_as_asked(seconds: str | None) -> None:
    if seconds is not None and seconds.isdigit():
        time.sleep(min(int(seconds), HUB_BUDGET_SECONDS))
