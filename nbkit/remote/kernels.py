"""The kernels of a box in this machine's Jupyter: a kernel spec each, carried out by `BoxProvisioner`.

A Jupyter whose environment has no nbkit does not know the provisioner and leaves the specs out.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from nbkit import atomic
from nbkit.errors import NbkitError, RemoteCommandError
from nbkit.remote import jupyter
from nbkit.remote.box import Box
from nbkit.ssh.route import absolute

PROVISIONER = "nbkit-box"
By = Literal["tunnel", "add", "attach"]
OnClose = Literal["leave", "end"]
_PYTHON = ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
_LOGO = Path(__file__).parent / "kernel.svg"
_OVERWRITTEN = re.compile(r"[^\n]*\r(?!\n)")  # what a progress bar wrote before it went back to the line's beginning
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")  # Jupyter's rule, less the names that begin with a dot or a dash


@dataclass(frozen=True)
class Listed:
    """A kernel of a box that can be chosen here.

    Attributes:
        name: For `jupyter console --kernel`, papermill -k, nbval --nbval-kernel-name.
        shown: As the launcher shows it.
        by: What made it: a tunnel, `kernel add`, or `kernel attach`.
        on_close: What becomes of the kernel when the Jupyter server here ends.
        running: Id of the kernel that it returns to; empty where it starts one.
    """

    name: str
    shown: str
    host: str
    by: By
    on_close: OnClose
    running: str = ""

    def as_dict(self) -> dict[str, str]:
        """For `--json`."""
        return asdict(self)


def register(host: str, specs: dict[str, Any], *, config: str = "", python: str = "") -> list[str]:
    """Make kernels of `host` selectable here; those of an earlier call that it no longer has go away.

    Args:
        specs: What the box's server answers to GET /api/kernelspecs, under "kernelspecs".
        config: The ssh_config in place of the user's own.
        python: Shell words that start the box's Python.

    Returns: The names that a person sees in the launcher.

    Raises: StorageError.
    """
    unregister(host, by="tunnel")
    shown = []
    for name, found in sorted(specs.items()):
        spec = dict(found["spec"])
        provisioner = (
            spec.get("metadata", {}).get("kernel_provisioner", {}).get("provisioner_name", "local-provisioner")
        )
        if provisioner != "local-provisioner":
            continue  # of yet another machine: the box reaches it, we do not
        spec["display_name"] = f"{spec['display_name'].removesuffix(' (ipykernel)')} ({host})"
        _write(_name(host, name), spec, "tunnel", {"host": host, "ssh_config": config, "python": python})
        shown.append(spec["display_name"])
    return shown


def add(
    box: Box,
    *,
    name: str = "",
    folder: str = "",
    env: Mapping[str, str] | None = None,
    on_close: OnClose = "leave",
    config: str | Path | None = None,
) -> Listed:
    """Make the Python of a box a kernel that can be chosen here; it needs ipykernel there, no Jupyter and no nbkit.

    Args:
        name: For command lines, and what the launcher shows; from the host when empty.
        folder: Where kernels work on the box; the home folder when empty.
        env: Variables that kernels have there, beside those of the box; no place for secrets, the spec is a plain file.
        on_close: Whether a kernel goes on when the Jupyter server here ends. Ending it by name always ends it.
        config: The ssh_config in place of the user's own.

    Raises: RemoteCommandError where there is no ipykernel; NbkitError (exit code 2) for a name that Jupyter does not
        take, or that another kernel has; StorageError.
    """
    chosen = (name or f"nbkit-{re.sub(r'[^a-z0-9._-]', '-', box.host.lower())}").lower()
    if not _NAME.fullmatch(chosen):
        raise NbkitError(
            f"{name!r} cannot be a kernel's name.", hint="letters, digits, dots, dashes: --name gpu-box", exit_code=2
        )
    owner = next((each for each in listed() if each.name == chosen), None)
    if (_folder() / chosen).exists() and (owner is None or owner.host != box.host):
        raise NbkitError(
            f"There is a kernel {chosen!r} already" + (f", of {owner.host}." if owner else ", not of nbkit's."),
            hint=f"another name: --name NAME      or: nbkit kernel rm {chosen}",
            exit_code=2,
        )
    about = jupyter.about_kernels(box, folder)
    spec = _spec(f"{name or 'Python ' + about['python'].rpartition('.')[0]} ({box.host})")
    where = {
        "host": box.host,
        "ssh_config": absolute(config) or box.session.route.config,
        "python": box.python,
        "folder": folder,
        "on_close": on_close,
    }
    return _write(chosen, {**spec, "env": dict(env or {})}, "add", where)


def find(box: Box, kernel_id: str = "", *, ended: bool = False) -> dict[str, Any]:
    """A kernel of ours that runs on a box, as `jupyter.look` tells of it; by its id or the beginning of it.

    Args:
        ended: Also one that has ended by itself, if it is named or none runs.

    Raises: RemoteCommandError when there is none, or several to choose from.
    """
    there = jupyter.look(box)
    running = [each for each in there.kernels if each["name"] is None]
    if ended and (kernel_id or not running):
        running += there.ended
    found = [each for each in running if str(each["id"]).startswith(kernel_id)]
    if len(found) != 1:
        ids = ", ".join(f"{each['id'][:8]} ({each.get('of') or each.get('pid', 'ended')})" for each in found or running)
        raise RemoteCommandError(
            f"{len(found) or 'No'} kernel{'s' if len(found) > 1 else ''} on {box.host}"
            f"{' whose id begins with ' + kernel_id if kernel_id else ''}" + (f"; there are: {ids}." if ids else "."),
            hint=f"give its ID: nbkit kernel list {box.named}" if ids else _to_start(box),
        )
    return dict(found[0])


def _to_start(box: Box) -> str:
    """How a kernel comes to run there: adding one only makes it a choice."""
    here = next((each for each in listed() if each.host == box.host and not each.running), None)
    if here:
        return f"choose {here.shown!r} in JupyterLab      or: jupyter console --kernel {here.name}"
    return f"nbkit kernel add {box.named}      then choose it in JupyterLab"


def attach(box: Box, kernel_id: str = "", *, config: str | Path | None = None) -> Listed:
    """Make a kernel that runs on a box one that can be chosen here: the notebook that does has its variables again.

    Args:
        kernel_id: Its id or the beginning of it; not needed where one runs.
        config: The ssh_config in place of the user's own.

    Raises: RemoteCommandError when there is none, or several to choose from; StorageError.
    """
    one = find(box, kernel_id)
    since = time.strftime("%H:%M", time.localtime(one.get("since", 0)))
    spec = _spec(f"{one.get('of') or f'Kernel ({box.host})'}, running since {since}")
    where = {
        "host": box.host,
        "ssh_config": absolute(config) or box.session.route.config,
        "python": box.python,
        "running": one["id"],
    }
    return _write(_name(box.host, one["id"]), spec, "attach", where)


def told(messages: Iterable[dict[str, Any]]) -> Iterator[str]:
    """What a kernel said (see jupyter.said) as text for a terminal, in pieces: each request's code, then what came of it."""
    for each in messages:
        content, kind = each.get("content", {}), each["type"]
        if kind == "full":
            yield f"[{each['limit'] >> 20} MiB are kept; what came after is not]\n"
        elif kind == "lost":
            yield f"[{each['count']} messages are not kept: the disk there was full]\n"
        elif kind == "end":
            yield f"[{content['text']}]\n"
        elif "omitted" in each:
            yield f"[{kind} of {each['omitted']:,} bytes, not kept]\n"
        elif kind == "execute_input":
            first, *more = content["code"].splitlines() or [""]
            yield "\n".join([f"> {first}", *(f"  {line}" for line in more)]) + "\n"
        elif kind == "stream":
            yield _OVERWRITTEN.sub("", content["text"])
        elif kind == "error":
            yield "\n".join(content["traceback"]) + "\n"
        else:
            shown = next(iter(content["data"].values()), "")
            also = [name for name in content["also"] if not name.startswith("text/")]
            yield "".join(shown) + (f"   [{', '.join(also)}]" if also else "") + "\n"


def listed() -> list[Listed]:
    """The kernels of boxes that can be chosen here."""
    found = (_read(path) for path in sorted(_folder().glob("*/kernel.json")))
    return [each for each in found if each is not None]


def unregister(host: str = "", *, name: str = "", by: By | None = None, running: str = "") -> int:
    """Take kernels out of this machine's Jupyter: those that match all that is given. Returns how many there were.

    Nothing on the box is ended.
    """
    wanted = {"host": host, "name": name, "by": by, "running": running}
    found = [
        each for each in listed() if all(not value or getattr(each, key) == value for key, value in wanted.items())
    ]
    for each in found:
        shutil.rmtree(_folder() / each.name, ignore_errors=True)
    return len(found)


def _spec(shown: str) -> dict[str, Any]:
    return {
        "argv": list(_PYTHON), "display_name": shown, "language": "python", "interrupt_mode": "signal",
        "metadata": {"debugger": True},
    }  # fmt: skip


def _write(name: str, spec: dict[str, Any], by: By, where: dict[str, str]) -> Listed:
    spec = {
        **spec,
        # Of those that know no provisioners; started here, the box's own words would run on this machine without a word.
        "argv": [sys.executable, "-m", "nbkit.remote.standin", name, "-f", "{connection_file}"],
        "metadata": {
            **spec.get("metadata", {}),
            "kernel_provisioner": {"provisioner_name": PROVISIONER, "config": {**where, "argv": spec["argv"]}},
            "nbkit": {"by": by},
        },
    }
    path = _folder() / name / "kernel.json"
    atomic.write_json(path, spec)
    atomic.write_bytes(path.parent / "logo-svg.svg", _LOGO.read_bytes(), durable=False)
    made = _read(path)
    assert made is not None
    return made


def blind() -> str:
    """The `jupyter` that a shell here starts, where its environment has no nbkit and so leaves these kernels out; or ""."""
    found = shutil.which("jupyter-lab") or shutil.which("jupyter")
    if found is None:
        return ""
    place = Path(found).resolve().parent
    return "" if place == Path(sys.executable).parent or (place / "nbkit").exists() else found


def read_spec(name: str) -> dict[str, Any]:
    """The kernel.json of a kernel of ours.

    Raises: NbkitError when there is none of that name.
    """
    path = _folder() / name / "kernel.json"
    if _read(path) is None:
        raise NbkitError(f"No kernel of a box is called {name!r}.", hint="nbkit kernel list")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _read(path: Path) -> Listed | None:
    """The kernel of a spec; None for one that is not ours, or that cannot be read."""
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
        provisioner = spec["metadata"]["kernel_provisioner"]
        if provisioner["provisioner_name"] != PROVISIONER:
            return None
        where, by = provisioner["config"], spec["metadata"].get("nbkit", {}).get("by", "tunnel")
        on_close = where.get("on_close", "leave")
        return Listed(path.parent.name, spec["display_name"], where["host"], by, on_close, where.get("running", ""))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _folder() -> Path:
    from jupyter_core.paths import jupyter_data_dir

    return Path(jupyter_data_dir()) / "kernels"


def _name(host: str, kernel: str) -> str:
    """A name that Jupyter allows, and that two hosts never share."""
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", f"{host}-{kernel}")[:60].lower()
    return f"nbkit-{readable}-{hashlib.sha256(f'{host} {kernel}'.encode()).hexdigest()[:8]}"
