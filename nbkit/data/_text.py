"""Lines of a UTF-8 text file, plain or gzip-compressed, with errors that name the line, the byte and the way out."""

from __future__ import annotations

import gzip
import shlex
import zlib
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

from nbkit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_LINE_BYTES = 64 * 2**20  # a line is held in memory several times over; one of 30 MB is fine
_UTF8_BOM = b"\xef\xbb\xbf"
_IN_DISGUISE = (
    (b"PAR1", "a Parquet file", "mv {path} {stem}.parquet"),
    (b"PK\x03\x04", "a zip archive", "unzip {path}"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", "zstd -d {path} -o {stem}.unpacked{suffix}"),
    (b"\xff\xfe", "UTF-16 text", "iconv -f UTF-16 -t UTF-8 {path} > {stem}.utf8{suffix}"),
    (b"\xfe\xff", "UTF-16 text", "iconv -f UTF-16 -t UTF-8 {path} > {stem}.utf8{suffix}"),
)


class Line(NamedTuple):
    """One line: its number from 1, its text, and whether a line end closed it (the last one of a cut file has none)."""

    number: int
    text: str
    closed: bool


def lines(path: Path) -> Iterator[Line]:
    """Read `path` line by line; a byte-order mark is skipped, only `\\n` ends a line.

    Raises: DataError for an empty file, another format in disguise, a byte that is not UTF-8, a line over the bound.
    """
    offset = number = 0
    with _open(path) as file:
        while raw := _readline(file, path, number):
            number += 1
            start = offset
            offset += len(raw)
            if number == 1:
                _refuse_disguise(path, raw)
                if raw.startswith(_UTF8_BOM):
                    raw, start = raw[3:], 3
            if len(raw) > MAX_LINE_BYTES:
                raise DataError(
                    f"{path}:{number}: the line is longer than {MAX_LINE_BYTES // 2**20} MiB.",
                    hint="write one row a line; for one big JSON array: "
                    f"jq -c '.[]' {shlex.quote(str(path))} > {shlex.quote(_beside(path, '.rows.jsonl'))}",
                )
            yield Line(number, _decode(path, number, start, raw), raw.endswith(b"\n"))
    if number == 0:
        raise DataError(f"{path} is empty (0 bytes).", hint="the export or download wrote nothing: make it again")


def blank(path: Path) -> DataError:
    """The error for a file that holds no row."""
    return DataError(f"{path} holds only blank lines.", hint=f"look with: head -c 200 {shlex.quote(str(path))} | od -c")


def _open(path: Path) -> BinaryIO:
    return cast("BinaryIO", gzip.open(path, "rb")) if path.suffix.lower() == ".gz" else path.open("rb")


def _readline(file: BinaryIO, path: Path, number: int) -> bytes:
    try:
        return file.readline(MAX_LINE_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: the gzip stream is damaged after line {number}: {error}.",
            hint=f"it was cut off or is not gzip: fetch it again and try: gzip -t {shlex.quote(str(path))}",
        ) from error


def _beside(path: Path, ending: str) -> str:
    """`data.jsonl.gz` -> `data` + ending, in the same folder."""
    return str(path.with_name(path.name.split(".")[0] + ending))


def _refuse_disguise(path: Path, raw: bytes) -> None:
    quoted = shlex.quote(str(path))
    if raw.startswith(b"\x1f\x8b"):
        if path.suffix.lower() == ".gz":
            raise DataError(f"{path} is compressed twice.", hint=f"mv {quoted} {quoted}.gz && gunzip {quoted}.gz")
        raise DataError(
            f"{path} is gzip-compressed, though its name does not end in .gz.",
            hint=f"mv {quoted} {quoted}.gz      and read that: it is unpacked while it is read",
        )
    for magic, what, fix in _IN_DISGUISE:
        if raw.startswith(magic):
            stem = shlex.quote(_beside(path, ""))
            raise DataError(
                f"{path} is {what}, not UTF-8 text.", hint=fix.format(path=quoted, stem=stem, suffix=path.suffix)
            )


def _decode(path: Path, number: int, offset: int, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        cut = error.reason == "unexpected end of data" and not raw.endswith(b"\n")
        column = len(raw[: error.start].decode()) + 1
        byte = f"byte 0x{raw[error.start]:02x} at offset {offset + error.start}"
        if cut:
            raise DataError(
                f"{path}:{number}:{column}: the file ends inside a character ({byte}): it was probably cut off.",
                hint="copy or export it again and compare sizes",
            ) from error
        guess = raw[error.start : error.start + 1].decode("cp1252", errors="replace")
        meant = f" (Windows-1252 would read {guess!r})" if guess.isprintable() and guess != "\ufffd" else ""
        packed = path.suffix.lower() == ".gz"
        ending = "".join(path.suffixes).removesuffix(".gz")
        source, target = shlex.quote(str(path)), shlex.quote(_beside(path, f".utf8{ending}"))
        convert = f"gzip -dc {source} | iconv -f WINDOWS-1252 -t UTF-8 > {target}"
        raise DataError(
            f"{path}:{number}:{column}: {byte} is not UTF-8{meant}.",
            hint=convert if packed else f"iconv -f WINDOWS-1252 -t UTF-8 {source} > {target}",
        ) from error
