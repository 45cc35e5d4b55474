"""What runs where: tunnels of this machine, and Jupyter and kernels on boxes. And the end of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from nbkit.errors import NbkitError
from nbkit.remote import jupyter, kernels, tunnels, work
from nbkit.remote.box import connect
from nbkit.ssh import relays

_AT_ONCE = 8


@dataclass(frozen=True)
class Status:
    """One box.

    Attributes:
        tunnels: Those of this machine that are open.
        running: What of ours runs there; None when it cannot be asked.
        works: What `nbkit run` began there and is at work.
        relays: What keeps connections through a break there, each as it describes itself.
        error: Why it cannot.
    """

    host: str
    tunnels: list[tunnels.Opened]
    running: jupyter.Running | None
    error: str = ""
    relays: list[dict[str, Any]] = field(default_factory=list)
    works: list[work.Work] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        running = asdict(self.running) if self.running else {"server": None, "kernels": [], "rest": []}
        return {
            "host": self.host, "tunnels": [asdict(each) for each in self.tunnels], "error": self.error, **running,
            "relays": [{"pid": each["pid"], "clients": len(each["sessions"])} for each in self.relays],
            "runs": [{"id": each.id, "state": each.state, "file": each.about["file"]} for each in self.works],
        }  # fmt: skip


def status(host: str = "", *, config: str | None = None, python: str = "") -> list[Status]:
    """Ask `host`, or every box that had a tunnel and no `stop` since; those are asked at once, and ask nobody back.

    Raises: what keeps a host that was named from being asked.
    """
    if host:
        return [_ask(_place(host, config, python), ask="auto")]

    def try_one(place: tunnels.Place) -> Status:
        try:
            return _ask(place, ask=None)
        except NbkitError as error:
            return Status(place.host, tunnels.opened(place.host), None, error.message.splitlines()[0])

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(try_one, tunnels.places()))


def _ask(place: tunnels.Place, *, ask: str | None) -> Status:
    with connect(place.host, config=place.config or None, ask=ask, python=place.python) as box:
        there = relays.listed(box.session, python=box.python)
        active = [each for each in work.works(box) if each.active]
        return Status(place.host, tunnels.opened(place.host), jupyter.look(box), relays=there, works=active)


@dataclass(frozen=True)
class Ended:
    """What `stop` ended: tunnels of this machine, kernels that it listed, and on the box what `box` says; and what goes on
    there, as `nbkit run` began it to go on alone.

    Attributes:
        relays: pid and number of connections of each on the box: one without any ends at once, else with the last.
    """

    tunnels: int
    kernels: int
    box: jupyter.Stopped
    left: list[work.Work]
    relays: list[tuple[int, int]]


def stop(host: str, *, config: str | None = None, python: str = "") -> Ended:
    """End everything of ours on `host`, and the tunnels there, but not what `nbkit run` began to go on alone. What a tunnel
    and `kernel attach` put into this machine's Jupyter is taken out of it; what `kernel add` put there stays: it starts new
    ones.

    Raises: what keeps the box from being asked; then nothing was ended.
    """
    place = _place(host, config, python)
    with connect(host, config=place.config or None, python=place.python) as box:
        # Other machines of this user may be at work. Asked first: its socket goes with what is cleared away below.
        retired = [
            (int(each["pid"]), len(each["sessions"]))
            for each in relays.listed(box.session, python=box.python, retire=True)
        ]
        ended = jupyter.stop(box)
        left = [each for each in work.works(box) if each.active]
    closed = tunnels.close(host)
    removed = kernels.unregister(host, by="tunnel") + kernels.unregister(host, by="attach")
    tunnels.forget(host)
    return Ended(closed, removed, ended, left, retired)


def _place(host: str, config: str | None, python: str) -> tunnels.Place:
    """How to reach `host`: as given, else as the newest tunnel did."""
    before = tunnels.remembered(host) or tunnels.Place(host)
    return tunnels.Place(host, config or before.config, python or before.python)
