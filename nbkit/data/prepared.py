"""Prepared data: a folder of JSON Lines files with a manifest that knows their counts and hashes.

prepared/tickets/  train.jsonl  seen.jsonl  unseen.jsonl  dataset.json
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbkit import __version__, atomic
from nbkit.data import formats
from nbkit.data.check import check
from nbkit.data.read import read
from nbkit.display import Table
from nbkit.errors import DataError, StorageError
from nbkit.redact import redact

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nbkit.data.rows import Rows

MANIFEST = "dataset.json"
SCHEMA = 1
EMBEDDED = ("tickets", "chatterbot")
FOLDER = Path("prepared")
_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # becomes a file name


@dataclass(frozen=True)
class Prepared:
    """Splits that were checked, counted and hashed. `prepared["train"]` are Rows.

    Attributes:
        path: The folder.
        splits: Rows of each split.
        hashes: sha256 of each split's file.
        format: Name of the rows' format.
        provenance: Where the data is from, and its licence.
    """

    path: Path
    splits: dict[str, Rows]
    hashes: dict[str, str]
    format: str
    provenance: str

    def __getitem__(self, name: str) -> Rows:
        if name not in self.splits:
            raise DataError(f"{self.path} has no split {name!r}.", hint=f"it has {', '.join(self.splits)}")
        return self.splits[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.splits)

    def __len__(self) -> int:
        return len(self.splits)

    def dataset(self, name: str) -> Any:
        """A split as a `datasets.Dataset`, which SFTTrainer takes as it is."""
        return self[name].to_dataset()

    @property
    def fingerprint(self) -> str:
        """sha256 over the splits' names, counts and hashes: equal where the data is equal, wherever it lies."""
        return _fingerprint({name: (len(rows), self.hashes[name]) for name, rows in self.splits.items()})

    def table(self) -> Table:
        """Rows and hash of each split."""
        return Table(
            ["split", "rows", "sha256"],
            [[name, len(rows), self.hashes[name][:12]] for name, rows in self.splits.items()],
            title=f"{self.path.name}: {self.format}, fingerprint {self.fingerprint[:12]}",
            notes=[self.provenance],
        )

    def __repr__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def _fingerprint(splits: dict[str, tuple[int, str]]) -> str:
    text = "".join(f"{name} {count} {digest}\n" for name, (count, digest) in sorted(splits.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def save_prepared(splits: dict[str, Rows], path: str | Path, *, provenance: str) -> Prepared:
    """Write splits to a folder, whole or not at all, with counts and hashes beside them.

    Args:
        splits: Rows under names such as `train` and `test`; all of one format, without blocking errors (see check).
        path: The folder. An earlier prepared set there is replaced, anything else is left alone.
        provenance: Where the data is from and under which licence; kept with it.
    Returns: The Prepared set, read back from disk.
    Raises: DataError for rows that cannot be trained on, an odd split name or a folder that holds something else;
        StorageError for a full disk or missing permission. Then nothing stands under `path` that was not there before.
    """
    path = Path(path)
    if not provenance.strip():
        raise DataError(
            "provenance is empty.", hint='say where the data is from: provenance="own support mails 2026, internal use"'
        )
    with atomic.explain(path):
        _refuse_foreign(path)
    name = _common_format(splits)
    with atomic.folder(path) as staged:
        entries: dict[str, dict[str, Any]] = {}
        for split, rows in splits.items():
            file = staged / f"{split}.jsonl"
            with file.open("w", encoding="utf-8", newline="\n") as out:
                out.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
            entries[split] = {
                "file": file.name,
                "rows": len(rows),
                "sha256": atomic.sha256(file),
                "source": redact(rows.source),
            }
        manifest = {
            "schema": SCHEMA,
            "format": name,
            "columns": list(dict.fromkeys(column for rows in splits.values() for column in rows.columns)),
            "rows": sum(len(rows) for rows in splits.values()),
            "fingerprint": _fingerprint({key: (entry["rows"], entry["sha256"]) for key, entry in entries.items()}),
            "splits": entries,
            "provenance": redact(provenance),
            "made_by": f"nbkit {__version__}",
        }
        atomic.write_json(staged / MANIFEST, manifest)
    return load_prepared(path)


def _refuse_foreign(path: Path) -> None:
    """Only a prepared set may be replaced: a wrong path must not cost a folder of someone's work."""
    if path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).is_file():
        raise DataError(
            f"{path} holds files and no {MANIFEST}: it is not a prepared set, so it is not replaced.",
            hint=f'choose a new folder, e.g. save_prepared(splits, "{path / "prepared"}", ...)',
        )


def _common_format(splits: dict[str, Rows]) -> formats.Name:
    if not splits:
        raise DataError("There are no splits to save.", hint='save_prepared({"train": rows, "test": held_out}, ...)')
    found: dict[formats.Name, str] = {}
    for split, rows in splits.items():
        if not _SPLIT_NAME.fullmatch(split):
            raise DataError(
                f"{split!r} cannot name a split: it becomes a file name.", hint="letters, digits, - and _ only"
            )
        check(rows).raise_if_blocked()
        found.setdefault(formats.detect(rows).name, split)
    if len(found) > 1:
        each = ", ".join(f"{split!r} is {name}" for name, split in found.items())
        raise DataError(f"The splits differ in format: {each}.", hint="convert all of them: nbkit.data.convert(rows)")
    return next(iter(found))


def load_prepared(path_or_name: str | Path) -> Prepared:
    """Read a prepared set and verify every count and hash.

    Args:
        path_or_name: The folder that save_prepared wrote; or `tickets` or `chatterbot`, the embedded sets: read from
            ./prepared/NAME where a notebook saved them, else made there on the spot, the same to the last byte.
    Returns: Prepared.
    Raises: DataError when the folder, a file, a count or a hash is not what the manifest says.
    """
    if path_or_name in EMBEDDED:
        return _embedded(str(path_or_name))
    path = Path(path_or_name)
    try:
        return _load(path)
    except PermissionError as error:
        raise DataError(f"No permission to read {error.filename}.", hint=f"ls -la {shlex.quote(str(path))}") from error


def _load(path: Path) -> Prepared:
    manifest = _manifest(path)
    splits: dict[str, Rows] = {}
    hashes: dict[str, str] = {}
    for split, entry in manifest["splits"].items():
        file = path / f"{split}.jsonl"
        hashes[split] = _verify(path, file, entry["rows"], entry["sha256"])
        splits[split] = read(file)
        if len(splits[split]) != entry["rows"]:
            raise DataError(
                f"{file} holds {len(splits[split]):,} rows, {MANIFEST} says {entry['rows']:,}.", hint=_again(path)
            )
    prepared = Prepared(path, splits, hashes, manifest["format"], manifest["provenance"])
    if prepared.fingerprint != manifest["fingerprint"]:
        raise DataError(
            f"{path / MANIFEST} was changed: its fingerprint is {manifest['fingerprint'][:12]}, "
            f"the splits it lists have {prepared.fingerprint[:12]}.",
            hint=_again(path),
        )
    return prepared


def _embedded(name: str) -> Prepared:
    path = FOLDER / name
    if not path.exists():
        try:
            return _make(name)
        except (OSError, StorageError):
            if not (path / MANIFEST).is_file():  # another notebook may have made it in the meantime
                raise
    return load_prepared(path)


def _make(name: str) -> Prepared:
    # The verb `chatterbot` stands under the module's name in nbkit.data, so its parts are imported one by one.
    if name == "chatterbot":
        from nbkit.data.chatterbot import PROVENANCE, prepare

        return save_prepared(prepare(), FOLDER / name, provenance=PROVENANCE)
    from nbkit.data import tickets

    splits = {split: read(rows) for split, rows in tickets.generate().items()}
    return save_prepared(splits, FOLDER / name, provenance=tickets.PROVENANCE)


def _manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    again = "save it again with nbkit.data.save_prepared (notebook 02_data_prep shows how)"
    if not file.is_file():
        what = "is not a prepared set: it has no" if path.is_dir() else "does not exist, so it has no"
        raise DataError(f"{path} {what} {MANIFEST}.", hint=f"embedded sets: {', '.join(EMBEDDED)}; else {again}")
    try:
        manifest = json.loads(file.read_bytes())
        wrong = _wrong_in(manifest)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} is damaged: {type(error).__name__}: {error}.", hint=again) from error
    if wrong:
        raise DataError(f"{file}: {wrong}.", hint=again)
    checked: dict[str, Any] = manifest
    return checked


def _wrong_in(manifest: Any) -> str:
    """What is not as save_prepared writes it, or an empty string; a file name never comes from the manifest."""
    if manifest["schema"] != SCHEMA:
        return f"schema {manifest['schema']!r}; this nbkit ({__version__}) reads {SCHEMA}"
    if not all(isinstance(manifest[field], str) for field in ("format", "provenance", "fingerprint")):
        return "format, provenance and fingerprint must be strings"
    for split, entry in manifest["splits"].items():
        if not _SPLIT_NAME.fullmatch(split) or not isinstance(entry["rows"], int) or len(entry["sha256"]) != 64:
            return f"the entry of split {split!r} is not as it was written"
    return ""


def _verify(path: Path, file: Path, count: int, digest: str) -> str:
    """The hash of a split's file, once it is what the manifest says."""
    if not file.is_file():
        raise DataError(f"{file} is missing; {MANIFEST} lists it with {count:,} rows.", hint=_again(path))
    found = atomic.sha256(file)
    if found != digest:
        with file.open("rb") as lines:
            rows = sum(1 for _ in lines)
        raise DataError(
            f"{file} is not the file that was saved: {rows:,} rows and sha256 {found[:12]}, "
            f"{MANIFEST} says {count:,} rows and {digest[:12]}.",
            hint=_again(path),
        )
    return found


def _again(path: Path) -> str:
    if path.name in EMBEDDED and path.parent == FOLDER:
        return f'rm -r {shlex.quote(str(path))}      then load_prepared("{path.name}") makes it again'
    return (
        "bring back the file, or save the set again; to keep an edit on purpose, read() the files and save_prepared()"
    )
