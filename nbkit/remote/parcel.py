"""What goes to a box with a run: the file, what it needs, and nbkit itself where the box has none of this version."""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from nbkit import __version__
from nbkit.errors import NbkitError
from nbkit.remote import beside, locked, parameters
from nbkit.remote.box import Box
from nbkit.remote.transfer import Progress, push, sync

OLDEST = (3, 11)  # for nbkit's own code
KINDS = {".ipynb": "notebook", ".py": "script", ".yaml": "recipe", ".yml": "recipe"}
_SHOWN = 4
_NEEDS = {"notebook": ("nbclient", "nbformat", "ipykernel"), "script": (), "recipe": ("trl",)}


@dataclass
class Parcel:
    """A file that is ready to be sent.

    Attributes:
        kind: notebook, script or recipe.
        more: Other paths here, and where each goes, below the folder that the file goes to.
        code: Files here that it imports, by where they go.
        content: What is sent in place of the file's own content; None for that.
        notes: What is to be said to the user.
    """

    path: Path
    kind: str
    more: dict[Path, str] = field(default_factory=dict)
    code: dict[str, Path] = field(default_factory=dict)
    content: str | None = None
    notes: list[str] = field(default_factory=list)


def prepare(
    file: str | Path, values: Mapping[str, Any], needs: Iterable[str | Path], arguments: Iterable[str] = ()
) -> Parcel:
    """Look at the file and what it needs, before anything is dialled.

    Modules beside a script or notebook that it imports go along. Of data it is only said that it stays here: what a text in
    the code, or one of `values` and `arguments`, names may be what is read, or what is to be written.

    Raises: NbkitError (2) for what cannot be run so.
    """
    path = Path(file)
    kind = KINDS.get(path.suffix, "")
    if not path.is_file():
        said = f"{path} is a folder, not a file to run" if path.is_dir() else f"There is no file {path}"
        raise NbkitError(f"{said}.", hint="nbkit run FILE --on HOST, with FILE a .ipynb, .py or .yaml", exit_code=2)
    if not kind:
        raise NbkitError(
            f"{path.name} is neither a notebook (.ipynb) nor a Python script (.py) nor a recipe (.yaml).",
            hint="nbkit push and ssh run anything else", exit_code=2,
        )  # fmt: skip
    parcel = Parcel(path, kind)
    parcel.more = _places(path, needs)
    if kind == "notebook":
        notebook = parameters.read(path)
        if values:
            parcel.notes += parameters.inject(notebook, values)
            parcel.content = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    elif kind == "recipe":
        _recipe(parcel, values)
    elif values:
        raise NbkitError(
            "--param is for notebooks and recipes.", hint=f"nbkit run {path} --on HOST -- --your-option", exit_code=2
        )
    if kind != "recipe":
        _beside(parcel, [*values.values(), *arguments])
    return parcel


def _beside(parcel: Parcel, values: Iterable[Any]) -> None:
    """What lies beside it and is not sent by name: modules go along, data is told."""
    home, name = parcel.path.resolve().parent, parcel.path.name
    sent = [path.resolve() for path in parcel.more]

    def is_sent(place: str) -> bool:
        whole = (home / place).resolve()
        return place == name or any(whole.is_relative_to(each) for each in sent)

    code = beside.code_of(parcel.path, parcel.kind)
    said = []
    for module, files in beside.modules(home, code).items():
        new = [file for file in files if not is_sent(file)]
        parcel.code |= {file: home / file for file in new}
        if new:
            said.append(module if module.endswith(".py") else f"{module}/")
    if said:
        goes, it = ("go", "them") if len(said) > 1 else ("goes", "it")
        parcel.notes.append(f"{', '.join(sorted(said))} {goes} along: {name} imports {it}")
    stays = [place for place in beside.named(home, code, values) if not is_sent(place) and place not in parcel.code]
    if stays:
        shown = ", ".join(stays[:_SHOWN]) + (" and more" if len(stays) > _SHOWN else "")
        which = " ".join(f"--with {shlex.quote(place)}" for place in stays[:_SHOWN])
        stay, it = ("stay", "they are") if len(stays) > 1 else ("stays", "it is")
        parcel.notes.append(f"{name} names {shown}, which {stay} here; if {it} read there: {which}")


def _places(path: Path, needs: Iterable[str | Path]) -> dict[Path, str]:
    """Below the file's own folder a thing keeps its place, from elsewhere it comes to lie beside the file."""
    found: dict[Path, str] = {}
    for need in map(Path, needs):
        if not need.exists():
            raise NbkitError(f"There is no {need} to send along.", hint="ls", exit_code=2)
        whole, home = need.resolve(), path.resolve().parent
        place = whole.relative_to(home).as_posix() if whole.is_relative_to(home) and whole != home else whole.name
        if place in found.values() or place == path.name:
            raise NbkitError(f"Two things would become {place!r} there.", hint="rename one of them", exit_code=2)
        found[whole] = place
    return found


def _recipe(parcel: Parcel, values: Mapping[str, Any]) -> None:
    from nbkit.errors import require

    require("yaml", extra="train")
    import yaml

    try:
        recipe = yaml.safe_load(parcel.path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise NbkitError(f"{parcel.path}{line} is no YAML: {what}.", hint="mend that line", exit_code=2) from error
    if not isinstance(recipe, dict):
        raise NbkitError(
            f"{parcel.path} is no recipe: it has no keys.", hint="as `trl sft --config` reads it", exit_code=2
        )
    recipe |= values
    if not recipe.get("model_name_or_path"):
        raise NbkitError(f"{parcel.path} names no model.", hint="model_name_or_path: ORG/MODEL", exit_code=2)
    data = recipe.get("dataset_name")
    if not data and not recipe.get("datasets"):
        raise NbkitError(
            f"{parcel.path} names no data: the config.yaml of a run does not hold its rows.",
            hint="dataset_name: train.jsonl      (a file beside it, which is sent along, or a data set of the hub)",
            exit_code=2,
        )
    for key in ("dataset_name", "model_name_or_path"):
        _local(parcel, recipe, key)
    parcel.content = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)


def _local(parcel: Parcel, recipe: dict[str, Any], key: str) -> None:
    """A relative path that lies beside the recipe goes along; an absolute one is the box's own.

    Raises: NbkitError (2) for one that lies elsewhere.
    """
    value, home = Path(str(recipe.get(key) or "")), parcel.path.resolve().parent
    if not recipe.get(key):
        return
    if value.is_absolute():
        parcel.notes.append(f"{key} {value} is taken for a path on the box")
    elif (home / value).exists():
        beside = (home / value).resolve()
        if not beside.is_relative_to(home):
            raise NbkitError(
                f"{key} {value} does not lie below {parcel.path.name}'s folder.",
                hint=f"--with {parcel.path.parent / value} --param {key}={beside.name}", exit_code=2,
            )  # fmt: skip
        parcel.more.setdefault(beside, value.as_posix())


def check(parcel: Parcel, there: Mapping[str, Any], box: Box) -> bool:
    """Whether nbkit's own code must go along.

    Raises: NbkitError for what is missing there.
    """
    packages = there["packages"]
    absent = [name for name in _NEEDS[parcel.kind] if not packages.get(name)]
    python = str(there["python"])
    if absent:
        raise NbkitError(
            f"{box.host}: {python} has no {', '.join(absent)}, which a {parcel.kind} needs there.",
            hint=f"nbkit setup {box.session.route.named}      or, on the box: {python} -m pip install {' '.join(absent)}",
        )
    if packages.get("nbkit") == __version__:
        return False
    if tuple(there["version"]) < OLDEST:
        if parcel.kind == "recipe":
            raise NbkitError(
                f"{box.host}: nbkit needs Python {OLDEST[0]}.{OLDEST[1]} or newer to run a recipe; {python} is older.",
                hint=f"nbkit setup {box.session.route.named} --base python3.12",
            )
        parcel.notes.append(f"{python} there is too old for nbkit: `import nbkit` will not work")
        return False
    return True


def send(box: Box, parcel: Parcel, files: str, progress: Callable[[Progress], None] | None = None) -> None:
    """Bring the file and what it needs into the folder `files` there.

    Raises: TransferError; UnreachableError.
    """
    folders = {path: place for path, place in parcel.more.items() if path.is_dir()}
    for path, place in sorted(folders.items(), key=lambda item: item[1]):
        sync(box, path, f"{files}/{place}", progress=progress)
    single: dict[str, list[str | Path]] = {}
    for path, place in parcel.more.items():
        if path not in folders:
            single.setdefault(f"{files}/{place}".rpartition("/")[0], []).append(path)
    with tempfile.TemporaryDirectory(prefix="nbkit-") as staged:
        for place, path in parcel.code.items():
            copy = Path(staged) / "code" / place
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
        if parcel.code:
            sync(box, Path(staged) / "code", files, progress=progress)
        own = parcel.path
        if parcel.content is not None:
            own = Path(staged) / parcel.path.name
            own.write_text(parcel.content, encoding="utf-8")
        single.setdefault(files, []).append(own)
        for place, paths in single.items():
            push(box, paths, f"{place}/", parents=True, progress=progress)


def send_code(box: Box, root: str, ask: Callable[..., dict[str, Any]]) -> str:
    """Have nbkit's own code on the box; the folder there that PYTHONPATH gets. Sent once for each version of it."""
    name, content = locked.wheel()
    digest = sha256(content).hexdigest()[:16]
    there = str(ask(verb="code", digest=digest, wheel="")["code"])
    if there:
        return there
    with tempfile.TemporaryDirectory(prefix="nbkit-") as staged:
        wheel = Path(staged) / f"{digest}-{name}"
        wheel.write_bytes(content)
        push(box, wheel, f"{root}/code/", parents=True)
    return str(ask(verb="code", digest=digest, wheel=f"{root}/code/{digest}-{name}")["code"])
