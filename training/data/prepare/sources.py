"""Files of text: finding them, and streaming their documents. Light: packages of a format are imported when it is met.

.txt and .md are one document each, .jsonl one a line, .parquet one a row; any of the first three may be .gz or .zst.
Local paths, folders, globs and fsspec URLs. Every byte that is read is hashed. Knows no tokens.
"""

from __future__ import annotations

import codecs
import json
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from launchyard.host.packages import install_command
from launchyard.storage.redact import without_credentials
from launchyard.training.data.prepare.local_files import LocalFiles

TextKind = Literal["text", "jsonl", "parquet"]
KINDS: dict[str, TextKind] = {
    ".txt": "text", ".text": "text", ".md": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet",
}  # fmt: skip
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
ALLOWED = "allowed are .txt .md .jsonl .parquet, and .gz or .zst of text and jsonl"
BLOCK = 1 << 18  # bytes read at once; bounds their size when decompressed


@dataclass(frozen=True)
class TextSource:
    """One file. `stamp` changes when the file is written again."""

    path: str
    kind: TextKind
    compression: str | None
    bytes: int
    stamp: str

    @property
    def name(self) -> str:
        """The path, without user, password and signature of a URL."""
        return without_credentials(self.path)

    def place(self, line: int | None) -> str:
        """Returns the name with a line, or row, of it."""
        if line is None:
            return self.name
        return f"{self.name}, row {line}" if self.kind == "parquet" else f"{self.name}:{line}"


@dataclass(frozen=True)
class Reject:
    """A document that was left out. `line` counts lines or rows from 1; None for a file that is one document."""

    file: str
    line: int | None
    reason: str


@dataclass
class Reading:
    """The part of one source that was read so far, and its invalid documents if those are skipped."""

    source: TextSource
    skip_invalid: bool = False
    bytes: int = 0
    documents: int = 0
    line: int | None = None  # or row, of the document that was read last
    rejects: list[Reject] = field(default_factory=list)
    hash: Any = field(default_factory=lambda: _xxh3())

    def invalid(self, line: int | None, reason: str) -> None:
        """Leaves a document out. Raises ValueError unless invalid documents are skipped."""
        if not self.skip_invalid:
            raise ValueError(f"{self.source.place(line)} {reason}")
        self.rejects.append(Reject(self.source.name, line, reason))

    @property
    def digest(self) -> str:
        return str(self.hash.hexdigest())


def _xxh3() -> Any:
    import xxhash

    return xxhash.xxh3_64()


# -- which files -----------------------------------------------------------------------------------------------------
def find_sources(items: list[str]) -> list[TextSource]:
    """The files meant by paths, folders, globs and URLs, in the order given, sorted inside each.

    ValueError names a source that does not exist, is of no known kind, or was named twice.
    """
    found: dict[str, TextSource] = {}
    for item in items:
        for source in _expand(item):
            if source.path in found:
                raise ValueError(f"{source.name} is named twice among the sources; name it once")
            found[source.path] = source
    if not found:
        raise ValueError("no sources were given; name text files, folders, globs or URLs")
    return list(found.values())


def every_file(items: list[str]) -> list[tuple[str, int, str]]:
    """All files that paths, folders, globs and URLs mean, of whatever kind: path, bytes and xxh3_64 of each.

    ValueError for a source that does not exist.
    """
    found: dict[str, tuple[str, int, str]] = {}
    for item in items:
        fs, path, prefix = _filesystem(item)
        below = fs.find(path) if fs.isdir(path) else []
        names = sorted(below or ([path] if fs.exists(path) else fs.glob(path)))
        inside = [name for name in names if not os.path.basename(name).startswith(".") and not fs.isdir(name)]
        if not inside:
            raise ValueError(f"{item} does not exist, or holds no file")
        for name in inside:
            hashed = _xxh3()
            size = 0
            with _open(f"{prefix}{name}") as file:
                while block := file.read(BLOCK):
                    hashed.update(block)
                    size += len(block)
            found[f"{prefix}{name}"] = f"{prefix}{name}", size, str(hashed.hexdigest())
    return list(found.values())


def _expand(item: str) -> list[TextSource]:
    fs, path, prefix = _filesystem(item)
    if _is_glob(path) and not fs.exists(path):
        names = [name for name in fs.glob(path) if not fs.isdir(name) and not _is_hidden(name, path)]
        if not names:
            raise ValueError(f"{item} matches no file")
        return [_source(fs, name, prefix) for name in sorted(names)]
    if fs.isdir(path):
        return _folder(fs, path, prefix, item)
    if not fs.exists(path):
        raise ValueError(f"{item} does not exist; sources are text files, folders, globs or URLs")
    return [_source(fs, path, prefix)]


def _folder(fs: Any, path: str, prefix: str, item: str) -> list[TextSource]:
    """All files of known kinds below a folder; hidden ones and other kinds are none of ours."""
    inside = sorted(fs.find(path))
    start = len(path.rstrip("/")) + 1
    names = [name for name in inside if kind_of(name) and not any(p.startswith(".") for p in name[start:].split("/"))]
    if not names:
        raise ValueError(f"{item} holds no text among its {len(inside)} files; {ALLOWED}")
    return [_source(fs, name, prefix) for name in names]


def _filesystem(item: str) -> tuple[Any, str, str]:
    """The file system of a path, the path inside it, and the prefix that completes such a path."""
    if "://" not in item or item.startswith("file://"):
        return LocalFiles(), os.path.abspath(item.removeprefix("file://")), ""
    import fsspec

    fs, path = fsspec.core.url_to_fs(item)
    fs.invalidate_cache()
    scheme = item.split("://", 1)[0]
    return fs, path, "" if path.startswith(f"{scheme}://") else f"{scheme}://"


def _is_glob(path: str) -> bool:
    return any(sign in path for sign in "*?[")


def _is_hidden(path: str, pattern: str) -> bool:
    """As in a shell: a leading dot must be asked for."""
    name, last = (text.rsplit("/", 1)[-1] for text in (path, pattern))
    return name.startswith(".") and not last.startswith(".")


def kind_of(path: str) -> tuple[TextKind, str | None] | None:
    """Kind and compression by the name of a file; None if it is nothing we read."""
    stem, last = os.path.splitext(path.lower())
    compression = COMPRESSIONS.get(last)
    kind = KINDS.get(os.path.splitext(stem)[1] if compression else last)
    if kind is None or (kind == "parquet" and compression):
        return None
    return kind, compression


def _source(fs: Any, path: str, prefix: str) -> TextSource:
    kind = kind_of(path)
    if kind is None:
        raise ValueError(f"{prefix}{path} is of no known kind; {ALLOWED}")
    info = fs.info(path)
    stamp = next((str(info[key]) for key in ("ETag", "etag", "md5Hash", "mtime", "LastModified") if info.get(key)), "")
    return TextSource(f"{prefix}{path}", kind[0], kind[1], int(info.get("size") or 0), stamp)


# -- their bytes -----------------------------------------------------------------------------------------------------
def raw_blocks(reading: Reading) -> Iterator[bytes]:
    """The bytes of a file as they lie; ValueError if it changed since it was found."""
    source = reading.source
    with _open(source.path) as file:
        while block := file.read(BLOCK):
            reading.hash.update(block)
            reading.bytes += len(block)
            yield block
    if reading.bytes != source.bytes and source.bytes:
        raise ValueError(f"{source.name} changed while it was read: {source.bytes} bytes, then {reading.bytes}")


def digest_of(source: TextSource) -> str:
    """xxh3_64 of a whole file."""
    reading = Reading(source)
    for _ in raw_blocks(reading):
        pass
    return reading.digest


def _open(path: str) -> Any:
    if "://" not in path:
        return open(path, "rb")
    import fsspec

    return fsspec.open(path, "rb")


def _blocks(reading: Reading) -> Iterator[bytes]:
    """The same, decompressed."""
    source = reading.source
    if source.compression is None:
        return raw_blocks(reading)
    if source.compression == "gzip":
        return _inflate(raw_blocks(reading), lambda: zlib.decompressobj(wbits=31), source.name, zlib.error)
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise ValueError(f"{source.name} needs the package zstandard: {install_command('data')}") from error
    engine = zstandard.ZstdDecompressor()
    return _inflate(raw_blocks(reading), engine.decompressobj, source.name, zstandard.ZstdError)


def _inflate(blocks: Iterator[bytes], new: Callable[[], Any], name: str, broken: type[Exception]) -> Iterator[bytes]:
    """Members of a compressed file one after the other; ValueError if the last one is cut."""
    engine = new()
    try:
        for block in blocks:
            while block:
                if engine.eof:
                    if not block.strip(b"\0"):  # padding, as tar and tape leave it
                        break
                    engine = new()
                if plain := engine.decompress(block):
                    yield plain
                block = engine.unused_data if engine.eof else b""
    except broken as error:
        raise ValueError(f"{name} is damaged: {error}") from error
    if not engine.eof:
        raise ValueError(f"{name} is cut: its compressed data ends too early")


# -- their documents -------------------------------------------------------------------------------------------------
def documents(reading: Reading, *, text_key: str) -> Iterator[Iterator[str]]:
    """The documents of a file, each as blocks of text to be joined. Use up one before the next."""
    read = {"text": _text, "jsonl": _jsonl, "parquet": _parquet}[reading.source.kind]
    for document in read(reading, text_key):
        reading.documents += 1
        yield document


def _text(reading: Reading, text_key: str) -> Iterator[Iterator[str]]:
    if reading.skip_invalid and (reason := _fault_of_text(reading.source)):
        for _ in raw_blocks(reading):  # hash it
            pass
        reading.invalid(None, reason)
        return
    yield _decode(reading)


def _fault_of_text(source: TextSource) -> str:
    """Returns the reason why a whole file is no text; empty if it is."""
    try:
        for _ in _decode(Reading(source)):
            pass
    except _NotUtf8Error as error:
        return str(error).removeprefix(f"{source.name} ")
    return ""


class _NotUtf8Error(ValueError):
    pass


def _decode(reading: Reading) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    done = 0
    first = True
    try:
        for block in _blocks(reading):
            text = decoder.decode(block)
            yield text.removeprefix("\ufeff") if first else text
            first = first and not text
            done = done + len(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        where = f"near byte {done + error.start}"
        raise _NotUtf8Error(
            f"{reading.source.name} is not UTF-8 {where}; convert it, for example: "
            "iconv -f LATIN1 -t UTF-8 FILE > NEWFILE"
        ) from error


def _lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []
    for block in blocks:
        first, *rest = block.split(b"\n")
        parts.append(first)
        for part in rest:
            yield b"".join(parts)
            parts = [part]
    if last := b"".join(parts):
        yield last


def _jsonl(reading: Reading, text_key: str) -> Iterator[Iterator[str]]:
    for number, line in enumerate(_lines(_blocks(reading)), start=1):
        if not line.strip():
            continue
        try:
            text = _field(line, text_key)
        except ValueError as error:
            reading.invalid(number, str(error))
            continue
        reading.line = number
        yield iter([text])


def _field(line: bytes, text_key: str) -> str:
    """Returns the text of a line. ValueError says only the reason: the caller knows the place."""
    try:
        row = json.loads(line.removeprefix(codecs.BOM_UTF8))
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from error
    if not isinstance(row, dict) or text_key not in row:
        has = (
            f"it has {', '.join(map(repr, row)) or 'no keys'}"
            if isinstance(row, dict)
            else f"it is {type(row).__name__}"
        )
        raise ValueError(f"has no key {text_key!r} ({has}); name the key of the text with --text-key")
    return _string(row[text_key], text_key)


def _string(value: object, text_key: str) -> str:
    """Returns the value as text. ValueError says only the reason."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"has {text_key!r} of type {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON may hold half of a surrogate pair
        raise ValueError(f"has {text_key!r} of no valid Unicode: {error.reason}") from error
    return value


def _parquet(reading: Reading, text_key: str) -> Iterator[Iterator[str]]:
    name = reading.source.name
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ValueError(f"{name} needs the package pyarrow: {install_command('data')}") from error
    for _ in raw_blocks(reading):  # hash it; parquet is read in leaps
        pass
    with _open(reading.source.path) as file:
        try:
            table = pyarrow.parquet.ParquetFile(file)
        except pyarrow.ArrowException as error:
            raise ValueError(f"{name} is no readable parquet file: {error}") from error
        columns = table.schema_arrow.names
        if text_key not in columns:
            raise ValueError(f"{name} has no column {text_key!r} (it has {', '.join(columns)}); see --text-key")
        row = 0
        for batch in table.iter_batches(batch_size=256, columns=[text_key]):
            for value in batch.column(0).to_pylist():
                row += 1
                try:
                    text = _string(value, text_key)
                except ValueError as error:
                    reading.invalid(row, str(error))
                    continue
                reading.line = row
                yield iter([text])
