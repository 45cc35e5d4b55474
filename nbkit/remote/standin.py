"""Stands in for a kernel of a box where a front end starts kernels by itself: `python -m nbkit.remote.standin NAME -f FILE`.

VS Code does (microsoft/vscode-jupyter#14172): it knows no provisioners, runs a kernel spec's `argv`, and talks to the ports
that it wrote into FILE. So that is what such an `argv` starts. It brings those ports to a kernel on the box, hands on the
signals that it gets, and ends with the kernel, or the kernel with it; killed, or when the front end was, it leaves the kernel
there.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from nbkit import ssh
from nbkit.errors import NbkitError, RemoteCommandError, UnreachableError
from nbkit.remote import jupyter, kernels
from nbkit.remote.box import Box, connect

_LOOK_S = 1.0
_GRACE_S = 0.5  # for a kernel to end by SIGTERM
_ORPHANED = 0  # among signals: the front end is gone
_PORTS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")


class StandIn:
    """One kernel on a box, at the ports of a connection file.

    Args:
        spec: What kernel.json holds.
        told: What the connection file holds.
    """

    def __init__(self, box: Box, spec: dict[str, Any], told: dict[str, Any]) -> None:
        where = spec["metadata"]["kernel_provisioner"]["config"]
        self.box, self.id = box, where.get("running") or uuid.uuid4().hex
        self._heard: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._stack = contextlib.ExitStack()
        self._stays = where.get("on_close", "leave") == "leave"
        if where.get("running"):
            # Its messages are signed with a key of its own, and the front end has chosen another.
            raise NbkitError(
                f"This kernel of {box.host} runs already; a front end that starts kernels by itself cannot return to it.",
                hint=f"nbkit tunnel {box.named}      and give its URL as that of an existing Jupyter server",
            )
        self.kernel = jupyter.start_kernel(
            box, self.id, list(where["argv"]), dict(spec.get("env", {})), str(told["key"]), str(spec["display_name"]),
            folder=str(where.get("folder", "")),
        )  # fmt: skip
        with contextlib.ExitStack() as stack:
            carrier, keep = self._carrier(stack)
            for path, port in zip(self.kernel["sockets"], _PORTS, strict=True):
                stack.enter_context(ssh.forward(carrier, path, int(told[port]), keep=keep))
            self._stack = stack.pop_all()

    def _carrier(self, stack: contextlib.ExitStack) -> tuple[ssh.Session | ssh.Streams, bool]:
        try:
            return stack.enter_context(ssh.Streams(self.box.session, python=self.box.python)), True
        except RemoteCommandError as error:
            print(f"What the kernel says while the link is away will be lost: {error}", file=sys.stderr, flush=True)
            return self.box.session, False

    def hear(self, number: int, _: Any) -> None:
        """A signal came."""
        self._heard.put(number)

    def stay(self) -> int:
        """Until the kernel has ended; its exit status, 0 when it was asked to end.

        Raises: UnreachableError when the link does not come back.
        """
        threading.Thread(target=self._watch_parent, args=(os.getppid(),), daemon=True).start()
        while True:
            try:
                number = self._heard.get(timeout=_LOOK_S)
            except queue.Empty:
                ended = self._ended()
                if ended is not None:
                    return ended
                continue
            if number == _ORPHANED and self._stays:
                with contextlib.suppress(OSError):  # who would have read it is gone, too
                    print(
                        f"Return to it: nbkit kernel attach {self.box.named} {self.id[:8]}", file=sys.stderr, flush=True
                    )
                return 0
            if number != signal.SIGINT:
                return self.end()
            self._signal("INT")

    def _watch_parent(self, parent: int) -> None:
        """A front end that is gone without a word leaves the kernel there, as a Jupyter server does, or as it was told."""
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        self._heard.put(_ORPHANED)

    def _ended(self) -> int | None:
        try:
            if jupyter.lives(self.box, self.kernel):
                return None
            found = jupyter.kernel_end(self.box, self.id, int(self.kernel["pid"]))
        except UnreachableError:
            if self.box.session.error is not None:
                raise
            return None
        if "again" in found:
            self.kernel = found["again"]
            return None
        print(found["text"], file=sys.stderr, flush=True)
        return int(found.get("status") or 0)

    def _signal(self, name: str) -> None:
        with contextlib.suppress(UnreachableError):
            self.box.session.wait(15.0)
            self.box.session.run(["kill", f"-{name}", "--", f"-{self.kernel['pid']}"])

    def end(self) -> int:
        """End the kernel and clear away what is left of it."""
        with contextlib.suppress(NbkitError):
            self.box.session.run(["touch", f"{self.kernel['base']}.asked"])
            for name in ("TERM", "KILL"):
                self._signal(name)
                time.sleep(_GRACE_S)
                if not jupyter.lives(self.box, self.kernel):
                    break
            jupyter.forget_kernel(self.box, self.id)
        return 0

    def close(self) -> None:
        """Close this end."""
        self._stack.close()


def main(arguments: list[str]) -> int:
    """Exit status, for a process."""
    name, _, file = arguments
    try:
        spec = kernels.read_spec(name)
        where = spec["metadata"]["kernel_provisioner"]["config"]
        told = json.loads(Path(file).read_text(encoding="utf-8"))
        config = where.get("ssh_config") or None
        with connect(where["host"], config=config, ask=None, python=where.get("python", "")) as box:
            one = StandIn(box, spec, told)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, one.hear)
            with contextlib.closing(one):
                return one.stay()
    except NbkitError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
