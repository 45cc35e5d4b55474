"""W&B, trackio and other reports are mirrors of a run: they may be off or fail, and no step waits for them.

The record is the run directory. A reporting callback works in a thread of its own; what it raises is an event of the
run, after which it is left alone.
"""

from __future__ import annotations

import copy
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nbkit.training.record import Recorder

_END_S = 60.0  # for the last reports, at the end of a run


class Mirror:
    """Stands in the place of the reporting callback `inner`."""

    def __init__(self, inner: Any, recorder: Recorder) -> None:
        self.inner, self.recorder = inner, recorder
        self.name = type(inner).__name__.removesuffix("Callback").lower()
        self.off = False
        self._calls: queue.Queue[Callable[[], Any] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name=f"mirror {self.name}", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            if self.off:
                continue
            try:
                call()
            except Exception as error:
                self.off = True
                self.recorder.event("mirror", name=self.name, off=f"{type(error).__name__}: {error}"[:500])

    def _pass(self, event: str, args: Any, state: Any, control: Any, options: dict[str, Any]) -> None:
        method = getattr(self.inner, event, None)
        if method is None or self.off:
            return
        # As they are now: the thread may come to it some steps later.
        state, control = copy.copy(state), copy.copy(control)
        if options.get("logs") is not None:
            options = {**options, "logs": dict(options["logs"])}
        self._calls.put(lambda: method(args, state, control, **options))

    def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        self._pass("on_train_begin", args, state, control, options)

    def on_log(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        self._pass("on_log", args, state, control, options)

    def on_evaluate(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        self._pass("on_evaluate", args, state, control, options)

    def on_save(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        self._pass("on_save", args, state, control, options)

    def on_train_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        self._pass("on_train_end", args, state, control, options)

    def close(self) -> None:
        """Let it finish, for a minute at most."""
        self._calls.put(None)
        until = time.monotonic() + _END_S
        while self._thread.is_alive() and time.monotonic() < until and not self.off:
            self._thread.join(0.1)
        if self._thread.is_alive() and not self.off:
            self.off = True
            self.recorder.event("mirror", name=self.name, off=f"it had not finished {_END_S:g} s after the run")


def mirrored(trainer: Any, path: Path, recorder: Recorder) -> Callable[[], None]:
    """Put a Mirror in the place of each reporting callback. Returns: A function that lets them finish, and undoes it."""
    from transformers import TrainerCallback

    _without_account(trainer, path, recorder)
    callbacks = trainer.callback_handler.callbacks
    mirrors = []
    for index, callback in enumerate(callbacks):
        if type(callback).__module__.startswith("transformers.integrations"):
            mirror = Mirror(callback, recorder)
            mirror.__class__ = type("Mirror", (Mirror, TrainerCallback), {})
            callbacks[index] = mirror
            mirrors.append(mirror)

    def undo() -> None:
        for mirror in mirrors:
            mirror.close()
            callbacks[callbacks.index(mirror)] = mirror.inner

    return undo


def _without_account(trainer: Any, path: Path, recorder: Recorder) -> None:
    """W&B works without an account: offline, into the run directory, unless a key or a mode is set. trackio writes a
    local database, and needs a login only for a Space: without one it stays local.
    """
    reports = trainer.args.report_to or []
    if "wandb" in reports:
        os.environ.setdefault("WANDB_DIR", str(path.absolute()))
        if not os.environ.get("WANDB_MODE") and not os.environ.get("WANDB_API_KEY") and not _wandb_login():
            os.environ["WANDB_MODE"] = "offline"
        if os.environ.get("WANDB_MODE") == "offline":
            recorder.event("wandb", mode="offline", sync=f"wandb sync {path}/wandb/offline-run-*")
    if "trackio" in reports:
        space = trainer.args.trackio_space_id or os.environ.get("TRACKIO_SPACE_ID")
        if space and not _hub_login():
            trainer.args.trackio_space_id = None
            os.environ.pop("TRACKIO_SPACE_ID", None)
            recorder.event("trackio", mode="local", why=f"no login for the Space {space}: hf auth login")
        elif not space:
            recorder.event("trackio", mode="local", show=f"trackio show --project {trainer.args.project}")


def _wandb_login() -> bool:
    netrc = Path.home() / ".netrc"
    return netrc.is_file() and "wandb" in netrc.read_text(errors="replace")


def _hub_login() -> bool:
    from huggingface_hub import get_token

    return bool(get_token())
