"""Set a box up: an environment there with nbkit's own lock and the torch its driver can use, or a Python that it has."""

from __future__ import annotations

import hashlib
import json
import shlex
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from nbkit.display import Table
from nbkit.errors import RemoteCommandError
from nbkit.hardware import Machine, torch_builds
from nbkit.hardware.builds import asked_build
from nbkit.remote import lasting, locked, look, program
from nbkit.remote.box import Box, remember
from nbkit.remote.trace import JUPYTER_NEEDS
from nbkit.ssh.text import plain

ENV = "~/.local/share/nbkit/env"
OLDEST = (3, 11)  # what pyproject.toml and the lock are for
CANDIDATES = ("python3.13", "python3.12", "python3.11")
# For `sh`: python3, or one that can run our programs where that is too old for it, as on many a cluster.
FIRST = (
    f'$( (for p in python3 {" ".join(CANDIDATES)}; do $p -c "import sys; sys.exit(sys.version_info < (3, 8))" 2>/dev/null '
    "&& echo $p && break; done; echo python3) | head -n 1)"
)
# With a CPU build the whole was 2.1 GiB, and pip's cache may take as much again; that of CUDA builds is an estimate.
LAB_GIB, TRAIN_GIB, CUDA_GIB, AGAIN_GIB = 1.0, 5.0, 14.0, 1.0
_CALL_S, _WAIT_S, _BACK_S = 60.0, 5.0, 600.0
# Where the words need what a login shell has: `module`, `conda`.
_PROFILE = ". /etc/profile >/dev/null 2>&1; "

Say = Callable[[str], None]


@dataclass(frozen=True)
class Setup:
    """A box that is ready. Shows itself as a table.

    Attributes:
        python: Shell words that start its Python; remembered.
        versions: Of what a kernel needs there.
        torch: The build of torch, with the reason; empty without torch or where the Python was there before.
    """

    host: str
    python: str
    versions: dict[str, str]
    torch: str = ""
    remark: str = ""

    def table(self) -> Table:
        rows = [
            ("Python", self.python),
            *self.versions.items(),
            *([("build of torch", self.torch)] if self.torch else []),
        ]
        return Table(
            ("part", "there"), rows, title=f"{self.host} is set up", notes=[self.remark] if self.remark else []
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def __str__(self) -> str:
        return str(self.table())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def adopt(box: Box, words: str) -> Setup:
    """Use a Python that is there: look whether a kernel can run in it, and remember it.

    Args:
        words: A path, or shell words such as "module load python/3.12; python3". Where they do not work as they are, the
            path is tried in quotes, and the words after /etc/profile, which brings `module`.

    Raises: RemoteCommandError when no Python starts so, or it lacks ipykernel or jupyter_server.
    """
    tried = [words, *([shlex.quote(words)] if " " in words and words[0] == "/" else []), _PROFILE + words]
    failure: RemoteCommandError | None = None
    for python in tried:
        try:
            machine = look.machine(replace(box, python=python))
            break
        except RemoteCommandError as error:
            failure = failure or error
    else:
        assert failure is not None
        raise failure
    absent = [name for name in JUPYTER_NEEDS if not machine.packages.get(name)]
    if absent:
        raise RemoteCommandError(
            f"{box.host}: Python {machine.python} ({machine.python_path}) has no {', '.join(absent)}.",
            hint=f"nbkit setup {box.session.route.named}      or, on the box: {python} -m pip install {' '.join(JUPYTER_NEEDS)}",
        )
    remember(box.session.route, python)
    names = ("jupyter_server", "ipykernel", "torch", "nbkit-llm")
    versions = {"version": machine.python, **{name: machine.packages.get(name) or "absent" for name in names}}
    remark = (
        ""
        if machine.packages.get("nbkit-llm")
        else "`import nbkit` will not work in its kernels; tunnels and files do."
    )
    return Setup(box.host, python, versions, remark=remark)


def setup(
    box: Box, *, path: str = ENV, extras: Sequence[str] = locked.EXTRAS, torch: str = "", say: Say = print
) -> Setup:
    """Make, complete or re-attach to nbkit's environment on a box, and remember its Python.

    The work runs there on its own: a lost link is made again, and an interrupt here leaves it running.

    Args:
        path: The environment's folder there.
        extras: Of `train` and `lab`, what the box gets besides the core.
        torch: PyTorch's name of the build, such as cu128; chosen for the driver when empty.
        say: Gets each line of the log.

    Raises: NbkitError (2) for a `torch` that there is not; RemoteCommandError for what is missing there; NbkitError (5) when
        no torch fits the driver; UnreachableError when the link does not come back.
    """
    torch = asked_build(torch) if torch else ""
    pins = locked.pins(extras)
    train = "train" in extras
    builds, reason = _builds(look.machine(box), torch) if train else ((), "")
    name, content = locked.wheel()
    request: dict[str, Any] = {
        "pins": [(pin.name, pin.text) for pin in pins], "torch": locked.torch_pin() if train else "", "builds": builds,
        "wheel": {"name": name, "content": b64encode(content).decode()}, "imports": _imports(extras),
    }  # fmt: skip
    return carry_out(box, request, path=path, reason=reason, say=say)


def carry_out(box: Box, request: dict[str, Any], *, path: str, reason: str = "", say: Say = print) -> Setup:
    """Have `there/install.py` fulfil a request, or re-attach to one that is at work; see `setup`."""
    request = {**request, "fingerprint": hashlib.sha256(json.dumps(request).encode()).hexdigest()}
    there = box.call("survey", {"candidates": CANDIDATES, "env": path}, timeout_s=_CALL_S)
    if (there["marker"] or {}).get("fingerprint") == request["fingerprint"]:
        say(f"{plain(there['env'])} is complete already")
        return _done(box, there["marker"], reason)
    base = _base(box, there)
    _room(box, there, request["builds"])
    if reason:
        say(f"torch {' or '.join(request['builds'])}: {reason}")
    job = {
        "verb": "start", "name": _job(path), "python": base, "source": program.text("install"),
        "request": {**request, "env": there["env"]},
    }  # fmt: skip
    started = box.call("job", job, timeout_s=_CALL_S)["started"]
    say("started there; a lost link does not end it" if started else "a setup is at work there already")
    return _done(box, _follow(box, _job(path), say), reason)


def stop(box: Box, *, path: str = ENV) -> bool:
    """End a setup that is at work there; False when none is. The next one goes on from what it left."""
    return bool(box.call("job", {"verb": "stop", "name": _job(path)}, timeout_s=_CALL_S)["stopped"])


def _job(path: str) -> str:
    return f"setup-{hashlib.sha256(path.encode()).hexdigest()[:12]}"


def _builds(machine: Machine, torch: str) -> tuple[tuple[str, ...], str]:
    if torch:
        return (torch,), "as asked"
    choice = torch_builds(machine)
    return choice.value, choice.reason


def _imports(extras: Sequence[str]) -> list[str]:
    lab, train = ["jupyter_server", "ipykernel"], ["torch", "transformers"]
    return ["nbkit", *(lab if "lab" in extras else []), *(train if "train" in extras else [])]


def _base(box: Box, there: dict[str, Any]) -> str:
    """The Python to build from.

    Raises: RemoteCommandError when none is new enough, or none can make environments.
    """
    new = [one for one in there["pythons"] if tuple(one["version"]) >= OLDEST]
    able = [one for one in new if one["venv"]]
    if able:
        return str(able[0]["executable"])
    if new:
        major, minor = new[0]["version"][:2]
        raise RemoteCommandError(
            f"{box.host}: Python {major}.{minor} there cannot make environments: it lacks venv or ensurepip.",
            hint=f"on the box: sudo apt install python{major}.{minor}-venv      without root: name another Python, "
            "--base WORDS (conda's and uv's have it)",
        )
    found = ", ".join(".".join(map(str, one["version"])) for one in there["pythons"])
    raise RemoteCommandError(
        f"{box.host}: nbkit needs Python {OLDEST[0]}.{OLDEST[1]} or newer; there is {found}.",
        hint="name a newer one: --base 'module load python/3.12; python3'      without root: "
        "pip install --user uv && uv python install 3.12",
    )


def _room(box: Box, there: dict[str, Any], builds: Sequence[str]) -> None:
    """Look before starting at what would otherwise fail minutes later.

    Raises: RemoteCommandError.
    """
    elsewhere = "choose another folder there: --path /a/larger/disk/nbkit-env"
    if there["taken"] and not there["ours"]:
        raise RemoteCommandError(
            f"{box.host}: {plain(there['env'])} holds something that nbkit did not make.",
            hint=f"{elsewhere}      or use it: --python {plain(there['env'])}/bin/python",
        )
    if not there["writable"]:
        raise RemoteCommandError(f"{box.host}: {plain(there['disk'])} is not writable.", hint=elsewhere)
    needed = LAB_GIB if not builds else TRAIN_GIB if builds == ("cpu",) else CUDA_GIB
    if there["has_torch"] or (there["ours"] and not builds):
        needed = AGAIN_GIB
    if there["free_gib"] < needed:
        raise RemoteCommandError(
            f"{box.host}: {there['free_gib']:.2f} GiB are free on the disk of {plain(there['env'])}; the setup needs "
            f"{needed:.0f} GiB.",
            hint=f"free some space there, or {elsewhere}",
        )


def _follow(box: Box, job: str, say: Say) -> dict[str, Any]:
    """Hand on the job's lines until it ends; its marker.

    Raises: RemoteCommandError with what went wrong there; UnreachableError when the link does not come back.
    """
    result = lasting.Log(box, job).follow(
        say,
        wait_s=_WAIT_S,
        back_s=_BACK_S,
        lost=lambda: say("the link is lost; the setup goes on there, connecting again"),
    )
    if result is None:
        raise RemoteCommandError(
            f"{box.host}: the setup was ended before it was done.",
            hint=f"nbkit setup {box.session.route.named}      goes on from what is there",
        )
    if "error" in result:
        raise RemoteCommandError(f"{box.host}: {plain(result['error'])}.", hint=plain(result["hint"]))
    return dict(result)


def _done(box: Box, marker: dict[str, Any], reason: str) -> Setup:
    python = shlex.quote(str(marker["python"]))
    remember(box.session.route, python)
    box.python = python
    versions = {plain(name): plain(str(version)) for name, version in marker["versions"].items()}
    build = f"{marker['build']} ({reason})" if marker["build"] else ""
    blind = marker["build"] not in {None, "cpu"} and not marker["cuda"]
    remark = f"This torch sees no GPU there: nbkit doctor {box.named}" if blind else ""
    return Setup(box.host, plain(python), versions, build, remark)
