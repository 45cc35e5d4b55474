"""A kernel on a box, for a Jupyter here: started over ssh, its five sockets brought here by forwards that ride a relay.

Loaded by jupyter_client through the entry point `nbkit-box`. A lost link is made again and the kernel goes on; what it says
and what it is told in between arrives afterwards, once and in order. Where no relay can run, it is lost, and the log says so.
A login that is refused ends the connection, not the kernel: an interrupt or a restart, which a person asks for, connects anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, cast

from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase
from traitlets import Enum, List, Unicode

from nbkit import ssh
from nbkit.errors import NbkitError, RemoteCommandError
from nbkit.remote import jupyter, kernels, pool
from nbkit.remote.box import Box, connect
from nbkit.ssh.route import to_paste

if TYPE_CHECKING:
    from jupyter_client.connect import KernelConnectionInfo

_POLL_S = 0.2
_BACK_S = 15.0  # an interrupt waits so long for a lost link
_SETTLED_S = 2.0
_JOIN_S = 1.5  # until those who listen here are heard there: ZeroMQ comes back each 0.1 s, and some round trips later


class BoxProvisioner(KernelProvisionerBase):
    """What `nbkit.remote.kernels` writes into a kernel spec is this class's configuration."""

    host = Unicode(help="An alias of ~/.ssh/config, USER@HOST[:PORT] or ssh://USER@HOST:PORT.").tag(config=True)
    ssh_config = Unicode(help="A file in place of the user's ssh_config.").tag(config=True)
    python = Unicode(help="Shell words that start the box's Python.").tag(config=True)
    argv = List(Unicode(), help="What starts the kernel there; else the spec's own.").tag(config=True)
    folder = Unicode(help="Where the kernel works on the box; the home folder when empty.").tag(config=True)
    on_close = Enum(
        ["leave", "end"], "leave", help="What becomes of the kernel when the Jupyter server that shows it ends."
    ).tag(config=True)
    running = Unicode(help="Id of a kernel that runs on the box, to be returned to; else one is started.").tag(
        config=True
    )

    _box: Box | None = None
    _kernel: dict[str, Any] | None = None
    _forwards: tuple[ssh.Forward, ...] = ()
    _streams: ssh.Streams | None = None
    _link: bool | None = True  # it stands; None when it is over
    _asked = _died = _elsewhere = False  # its end was asked for here; came otherwise; was asked for elsewhere
    _noted = 0

    @property
    def has_process(self) -> bool:
        return self._kernel is not None

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        kwargs.pop("extra_arguments", None)
        kwargs["env"] = {}  # of this machine: means nothing there; the spec's own are added
        return await super().pre_launch(cmd=list(self.argv) or self.kernel_spec.argv, **kwargs)

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        manager: Any = self.parent
        try:
            key = await asyncio.to_thread(self._launch, cmd, kwargs["env"], manager.session.key.decode())
        except NbkitError as error:
            raise _shown(error, manager.parent) from error
        pool.attend(manager.parent, BoxProvisioner)
        shell, iopub, stdin, control, heartbeat = (forward.local_port for forward in self._forwards)
        info: dict[str, Any] = {
            "transport": "tcp", "ip": "127.0.0.1", "key": key.encode(), "signature_scheme": "hmac-sha256",
            "shell_port": shell, "iopub_port": iopub, "stdin_port": stdin, "control_port": control, "hb_port": heartbeat,
        }  # fmt: skip
        self.connection_info = cast("KernelConnectionInfo", info)  # the key as bytes, as jupyter_client compares it
        return self.connection_info

    def _launch(self, argv: list[str], env: dict[str, str], key: str) -> str:
        """Start the kernel, or at first find the one that runs; the key that signs its messages."""
        self._connect_anew()
        first = self._box is None  # else a restart: connection, ports and socket paths stay
        if self._box is None:
            self._box = self._connected()
        try:
            if first and self.running:
                self._kernel = jupyter.find_kernel(self._box, self.running)
                key = str(self._kernel["key"])
            else:
                name = str(self.kernel_spec.display_name)
                self._kernel = jupyter.start_kernel(
                    self._box, self._id, argv, env, key, name, folder=self.folder, keep=self._died
                )
            self._asked = self._died = self._elsewhere = False
            if not self._forwards:
                self._forward(self._box, self._kernel["sockets"])
        except NbkitError:
            self._close()
            raise
        return key

    def _connected(self) -> Box:
        return connect(self.host, config=self.ssh_config or None, ask=None, python=self.python)

    def _forward(self, box: Box, sockets: list[str], ports: tuple[int, ...] = (0,) * 5) -> None:
        carrier = self._carrier(box)
        keep = self._streams is not None
        self._forwards = tuple(
            ssh.forward(carrier, path, port, keep=keep) for path, port in zip(sockets, ports, strict=True)
        )
        self._link = True
        for each in {box.session, carrier}:
            each.hold(self._changed)

    def _connect_anew(self) -> None:
        """Where the connection is over for good, a new one, at the ports that are known here.

        Raises: what refuses it again.
        """
        before, kernel = self._box, self._kernel
        if before is None or before.session.error is None:
            return
        box, ports = self._connected(), tuple(forward.local_port for forward in self._forwards)
        self._close()
        self._box, self._kernel = box, kernel
        if kernel is not None:
            self._forward(box, kernel["sockets"], ports)
            time.sleep(_JOIN_S)
        self._warn(f"Connected to {self.host} anew. What the kernel said meanwhile: {self._logs}")

    def _carrier(self, box: Box) -> ssh.Session | ssh.Streams:
        """What the sockets ride on: streams that outlive the link, or the session itself where no relay can run."""
        try:
            self._streams = ssh.Streams(box.session, python=box.python)
        except RemoteCommandError as error:
            self._warn(f"What the kernel says while the link to {self.host} is away will be lost: {error}")
            return box.session
        return self._streams

    def _changed(self) -> None:
        """Log what is new of the link, and of the relay: that it was lost, that a disk is full."""
        streams, box = self._streams, self._box
        if box is None or self._link is None:
            return
        if box.session.error is not None:
            self._link = None
            self._warn(
                f"The connection to {self.host} is over: {box.session.error}\n"
                "The kernel goes on there. When that is mended, interrupt it or restart it: either connects anew."
            )
        elif self._link != box.session.alive:
            self._link = box.session.alive
            said = "is back" if self._link else "is lost; it is made again, and the kernel goes on"
            self._warn(f"The link to {self.host} {said}.")
        if streams is not None:
            for note in streams.notes[self._noted :]:
                self._warn(f"{note} What the kernel prints is kept: {self._logs}")
            self._noted = len(streams.notes)

    @property
    def _id(self) -> str:
        """The kernel's id on the box; the one here is another when it was returned to."""
        return self.running or str(self.kernel_id)

    @property
    def _named(self) -> str:
        return self._box.named if self._box else to_paste(self.host, self.ssh_config, self.python)

    @property
    def _logs(self) -> str:
        return f"nbkit kernel logs {self._named} {self._id[:8]}"

    def _warn(self, text: str) -> None:
        """Into Jupyter's log; to stderr where nobody hears that, as in a script that runs a notebook with nbclient."""
        self.log.warning("%s", text)
        logger: logging.Logger | None = getattr(self.log, "logger", self.log)
        while logger is not None:
            if any(not isinstance(handler, logging.NullHandler) for handler in logger.handlers):
                return
            logger = logger.parent if logger.propagate else None
        print(f"nbkit: {text}", file=sys.stderr)

    def leave(self) -> None:
        """Close this end; the kernel runs on, on the box."""
        if self._kernel is not None:
            self.log.info(
                "The kernel %s runs on, on %s. Return to it: nbkit kernel attach %s %s",
                self._id[:8], self.host, self._named, self._id[:8],
            )  # fmt: skip
        self._kernel = None
        self._close()

    def dropped(self) -> None:
        """Jupyter has dropped the kernel, to shut it down, after an error of before: end it, or say that it runs on."""
        box, kernel = self._box, self._kernel
        if box is None or kernel is None:
            return
        self._asked = not self._died
        try:
            if self._asked:
                for words in (["touch", f"{kernel['base']}.asked"], ["kill", "-KILL", "--", f"-{kernel['pid']}"]):
                    self._tell(box.session, words)
        except NbkitError as error:
            self._warn(f"The kernel {self._id[:8]} on {self.host} cannot be ended: {error.message}")
            self.leave()
        else:
            self._end()

    async def poll(self) -> int | None:
        """None while the kernel lives; it is dead only when the box says so, not when the link is lost."""
        if self._kernel is None or self._box is None:
            return 0
        try:
            if await asyncio.to_thread(jupyter.lives, self._box, self._kernel):
                return None
        except NbkitError:
            return None
        if self._asked:
            return 0
        status = await asyncio.to_thread(self._ended, self._box, self._kernel)
        # Only here is it known that the kernel was shut down elsewhere, and that none is to be started in its place.
        return None if self._elsewhere and await pool.leave_dead(self.parent, self._end) else status

    def _ended(self, box: Box, kernel: dict[str, Any]) -> int | None:
        """Exit status of a kernel whose end nobody here asked for, said once; None when another has its place."""
        try:
            found = jupyter.kernel_end(box, self._id, kernel["pid"])
            if found.get("shut_down") or (found.get("asked") and found["status"]):
                time.sleep(_SETTLED_S)  # what looks like the end may be the middle of a restart
                found = jupyter.kernel_end(box, self._id, kernel["pid"])
        except NbkitError:
            return None  # it is asked again
        if "again" in found:
            self._kernel = found["again"]
            self._warn(f"The kernel {self._id[:8]} on {self.host} was restarted from elsewhere.")
            return None
        self._elsewhere = bool(found.get("shut_down"))
        if not self._died:
            self._died = True
            self._warn(f"{found['text']} (kernel {self._id[:8]}; what it printed: {self._logs})")
        return int(found.get("status") or 0)

    async def wait(self) -> int | None:
        while (status := await self.poll()) is None:  # noqa: ASYNC110 - it happens on another machine
            await asyncio.sleep(_POLL_S)
        self._kernel = None
        return status

    async def send_signal(self, signum: int) -> None:
        """To the kernel's process group."""
        await asyncio.to_thread(self._connect_anew)
        if self._box is not None and self._kernel is not None and await self.poll() is None:
            words = ["kill", f"-{signum}", "--", f"-{self._kernel['pid']}"]
            if self._asked:  # its end needs no explanation, below the cell or anywhere
                await asyncio.to_thread(self._tell, self._box.session, ["touch", f"{self._kernel['base']}.asked"])
            await asyncio.to_thread(self._tell, self._box.session, words)

    def _tell(self, session: ssh.Session, words: list[str]) -> None:
        """Run a command there; while the link is away, wait for it.

        Raises: UnreachableError when it does not come back.
        """
        session.wait(_BACK_S)
        session.run(words)

    async def kill(self, restart: bool = False) -> None:
        del restart
        self._asked = not self._died
        await self.send_signal(signal.SIGKILL)

    async def terminate(self, restart: bool = False) -> None:
        del restart
        self._asked = not self._died
        await self.send_signal(signal.SIGTERM)

    async def shutdown_requested(self, restart: bool = False) -> None:
        del restart
        self._asked = not self._died

    async def cleanup(self, restart: bool = False) -> None:
        if not restart and self._box is not None:
            await asyncio.to_thread(self._end)

    def _close(self) -> None:
        box, forwards, streams = self._box, self._forwards, self._streams
        self._box, self._kernel, self._forwards, self._streams = None, None, (), None
        for forward in forwards:
            forward.close()
        if streams is not None:
            streams.close()
        if box is not None:
            box.close()

    def _end(self) -> None:
        """Close this end of a kernel that was ended, and clear away what is left of it on both sides."""
        if self._box is not None and not self._died:  # what one left that ended by itself can be read for a while
            with contextlib.suppress(NbkitError):  # its files are gone at `nbkit stop` at the latest
                jupyter.forget_kernel(self._box, self._id)
        self._close()
        if self.running:
            kernels.unregister(self.host, running=self.running)


def _shown(error: NbkitError, started_by: object) -> Exception:
    """As a page shows it: Jupyter Server says "Unhandled error" of any error but its own."""
    if not any(kind.__module__.startswith("jupyter_server.") for kind in type(started_by).__mro__):
        return error
    from tornado.web import HTTPError

    return HTTPError(500, str(error), reason="the kernel could not be started")
