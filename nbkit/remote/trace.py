"""The path to a box, drawn hop by hop: this machine, jump hosts, sshd, Python, Jupyter, GPU; the first red one has the fix."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Literal

from nbkit.display import Table
from nbkit.errors import NbkitError, RemoteCommandError, UnreachableError
from nbkit.hardware import Diagnosis, Machine
from nbkit.hardware.facts import version
from nbkit.remote import look
from nbkit.ssh import Route, Session
from nbkit.ssh.route import Hop

if TYPE_CHECKING:
    from nbkit.remote.box import Box

State = Literal["ok", "warning", "failed", "not reached"]
JUPYTER_NEEDS = ("jupyter_server", "ipykernel")
_MARKS = {"ok": "●", "warning": "◐", "failed": "✗", "not reached": "○"}
_COLOURS = {"ok": "#2e7d32", "warning": "#b26a00", "failed": "#c62828", "not reached": "#90a4ae"}
_SIZES, _LONG_S = (256 * 1024, 8 * 1024 * 1024), 0.25


@dataclass(frozen=True)
class Step:
    """One stretch of the path.

    Attributes:
        name: laptop, jump host, sshd, Python, Jupyter or GPU.
        what: Address, version or card.
        round_trip_ms: There and back; None where it makes no sense or was not reached.
        down_mb_s, up_mb_s: Of a short transfer from and to the box.
        remark: Key, login or reason.
        fix: What to do, where the state is not ok.
    """

    name: str
    what: str
    state: State
    round_trip_ms: float | None = None
    down_mb_s: float | None = None
    up_mb_s: float | None = None
    remark: str = ""
    fix: str = ""


@dataclass(frozen=True)
class Trace:
    """The path, in order. Shows itself as a drawing."""

    host: str
    steps: tuple[Step, ...]
    exit_code: int = 0

    @property
    def broken(self) -> Step | None:
        """The first hop that does not work."""
        return next((step for step in self.steps if step.state == "failed"), None)

    def table(self) -> Table:
        """One row a hop."""
        rows = [(one.name, one.what, one.state, _ms(one.round_trip_ms), _speed(one), one.remark) for one in self.steps]
        columns = ("hop", "what", "state", "round trip", "down / up", "remark")
        notes = [f"First red hop: {self.broken.name}. Fix: {self.broken.fix}"] if self.broken else []
        return Table(columns, rows, title=f"The path to {self.host}", notes=notes)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"host": self.host, "ok": self.broken is None, "path": [asdict(step) for step in self.steps]}

    def __str__(self) -> str:
        """A line a hop, below each other, joined; the fix under the first red one."""
        wide = max(len(step.name) for step in self.steps)
        lines = [f"The path to {self.host}"]
        for index, step in enumerate(self.steps):
            if index:
                lines.append("  │")
            numbers = ", ".join(filter(None, (_ms(step.round_trip_ms), _speed(step))))
            said, *more = "  ".join(filter(None, (step.what, numbers, step.remark))).splitlines() or [""]
            lines.append(f"  {_MARKS[step.state]} {step.name.ljust(wide)}  {said}")
            lines += [f"  │ {' ' * wide}  {line.strip()}" for line in more]
            if step.fix and step.state in {"failed", "warning"}:
                first, *more = step.fix.splitlines()
                lines.append(f"  │ {' ' * wide}  Fix:  {first}")
                lines += [f"  │ {' ' * wide}        {line.strip()}" for line in more]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = []
        for step in self.steps:
            numbers = ", ".join(filter(None, (_ms(step.round_trip_ms), _speed(step))))
            fix = f"<pre style='margin:.2em 0;white-space:pre-wrap'>{escape(step.fix)}</pre>" if step.fix else ""
            rows.append(
                f"<div style='border-left:2px solid {_COLOURS[step.state]};padding:.15em .6em'>"
                f"<b style='color:{_COLOURS[step.state]}'>{_MARKS[step.state]} {escape(step.name)}</b> "
                f"{escape(step.what)} <span style='opacity:.7'>{escape(numbers)}</span> {escape(step.remark)}{fix}</div>"
            )
        return f"<div><div style='font-weight:600'>The path to {escape(self.host)}</div>{''.join(rows)}</div>"


@dataclass(frozen=True)
class Examination:
    """The path to a box and, where its Python answers, the doctor's findings there."""

    path: Trace
    found: Diagnosis | None

    @property
    def exit_code(self) -> int:
        """0 all well, 3 unreachable, 4 authentication or host key, 5 a blocker on the path or in the box."""
        return self.path.exit_code or (self.found.exit_code if self.found else 0)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        told = {**(self.found.as_dict() if self.found else {}), **self.path.as_dict()}
        return {**told, "ok": self.exit_code == 0, "exit_code": self.exit_code}

    def __str__(self) -> str:
        return "\n\n".join(map(str, filter(None, (self.path, self.found))))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<div>{''.join(one._repr_html_() for one in (self.path, self.found) if one)}</div>"


def examination(box: Box, *, error: str | None = None, fast: bool = False, timeout_s: float = 120.0) -> Examination:
    """Walk the path to a box that is connected, then examine it.

    Raises: UnreachableError when the link is lost meanwhile.
    """
    steps = _way(box.session)
    began = time.monotonic()
    try:
        found = look.machine(box)
    except UnreachableError:
        raise
    except RemoteCommandError as failure:
        steps.append(Step("Python", box.python, "failed", remark=failure.message, fix=failure.hint))
        return Examination(Trace(box.host, (*steps, *_not_reached("Jupyter", "GPU")), 5), None)
    took = 1000 * (time.monotonic() - began)
    steps.append(
        Step("Python", f"{found.python}, {found.python_path}", "ok", took, remark="started and probed in that time")
    )
    steps += [_jupyter(found, box.session.route.named), _gpu(found)]
    path = Trace(box.host, tuple(steps), 5 if steps[-2].state == "failed" else 0)
    return Examination(path, look.diagnosis(box, error=error, fast=fast, timeout_s=timeout_s))


def unreached(host: str, route: Route | None, error: NbkitError) -> Examination:
    """The path up to the hop where connecting failed."""
    steps = [Step("laptop", os.uname().nodename, "ok")]
    if route is None:
        steps[0] = Step("laptop", os.uname().nodename, "failed", remark=error.message, fix=error.hint)
        steps += _not_reached("sshd")
    else:
        failed = 0 if error.hop is None else error.hop
        for index, hop in enumerate(route.hops):
            name = "sshd" if hop is route.target else "jump host"
            if index == failed:
                steps.append(Step(name, _where(hop), "failed", remark=error.message, fix=error.hint))
            else:
                state: State = "ok" if index < failed else "not reached"
                steps.append(Step(name, _where(hop), state, remark="" if state == "ok" else state))
    steps += _not_reached("Python", "Jupyter", "GPU")
    return Examination(Trace(host, tuple(steps), error.exit_code), None)


def _way(session: Session) -> list[Step]:
    """This machine, the jump hosts and sshd."""
    steps = [Step("laptop", os.uname().nodename, "ok", remark=f"ssh config read by {session.route.source}")]
    down, up = _bandwidth(session)
    facts = session.facts
    for hop, seconds, login in zip(session.route.hops, session.round_trips(), session.methods, strict=True):
        if hop is session.route.target:
            remark = f"{login}; host key {facts['host_key']}"
            steps.append(Step("sshd", _where(hop), "ok", 1000 * seconds, down, up, remark))
        else:
            steps.append(Step("jump host", _where(hop), "ok", 1000 * seconds, remark=login))
    return steps


def _where(hop: Hop) -> str:
    """What the user calls it, and its address."""
    return str(hop) if hop.alias.lower() == hop.hostname else f"{hop.alias}, {hop}"


def _bandwidth(session: Session) -> tuple[float | None, float | None]:
    """MB/s from and to the box, end to end; None where no shell runs there."""

    def down(size: int) -> bool:
        return len(session.run(["head", "-c", str(size), "/dev/zero"]).stdout) >= size

    def up(size: int) -> bool:
        return session.run("cat > /dev/null", input=bytes(size)).status == 0

    return _mb_s(down), _mb_s(up)


def _mb_s(move: Callable[[int], bool]) -> float | None:
    """Of 256 KiB, and of 8 MiB where those were quick; None where they did not go over."""
    seconds, size = 0.0, 0
    try:
        for size in _SIZES:
            began = time.monotonic()
            if not move(size):
                return None
            seconds = time.monotonic() - began
            if seconds > _LONG_S:
                break
    except RemoteCommandError:
        return None
    return size / seconds / 1e6


def _jupyter(machine: Machine, named: str) -> Step:
    absent = [name for name in JUPYTER_NEEDS if not machine.packages.get(name)]
    has = ", ".join(f"{name} {machine.packages[name]}" for name in JUPYTER_NEEDS if name not in absent)
    if absent:
        remark = f"{', '.join(absent)} not installed in {machine.python_path}"
        return Step("Jupyter", has or "none", "failed", remark=remark, fix=f"nbkit setup {named}")
    if version(machine.packages["ipykernel"]) < (6, 17):
        return Step("Jupyter", has, "warning", remark="ipykernel is old", fix=f"nbkit setup {named}")
    return Step("Jupyter", has, "ok")


def _gpu(machine: Machine) -> Step:
    if not machine.visible_gpus:
        return Step("GPU", "none", "warning", remark=machine.gpu_reason)
    return Step("GPU", gpus(machine), "ok", remark=f"{free(machine)} free; driver {machine.gpus[0].driver}")


def gpus(machine: Machine) -> str:
    """Its cards in a few words: `2x RTX 4090`, `none`."""
    counts = Counter(gpu.short_name for gpu in machine.gpus)
    return ", ".join(f"{count}x {name}" if count > 1 else name for name, count in counts.items()) or "none"


def free(machine: Machine) -> str:
    """Free memory of each card and its size: `22.9 + 3.1 of 24.0 GiB`; empty without a card."""
    if not machine.gpus:
        return ""
    left = " + ".join("?" if gpu.free_gib is None else f"{gpu.free_gib:.1f}" for gpu in machine.gpus)
    return f"{left} of {' + '.join(sorted({f'{gpu.usable_gib:.1f}' for gpu in machine.gpus}))} GiB"


def _not_reached(*names: str) -> list[Step]:
    return [Step(name, "", "not reached", remark="not reached") for name in names]


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"


def _speed(step: Step) -> str:
    both = [(value, way) for value, way in ((step.down_mb_s, "down"), (step.up_mb_s, "up")) if value is not None]
    return ", ".join(f"{value:.0f} MB/s {way}" if value >= 10 else f"{value:.1f} MB/s {way}" for value, way in both)
