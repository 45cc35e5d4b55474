"""A folder of the box kept in step with one here, while both are at work: `nbkit sync --watch`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from nbkit.errors import NbkitError, UnreachableError
from nbkit.remote.box import Box
from nbkit.remote.lasting import held
from nbkit.remote.transfer import Source, Transferred, sync

LOOK_S = 0.5  # between looks; longer for a folder that takes long to look at
_SHARE = 0.1  # of the time is spent looking, at most
_CALM_S = 0.3  # an editor writes a file in several steps
_BUSY_S = 3.0  # where something is written all the time, there is no calm to wait for
_AGAIN_S = 5.0
Seen = dict[str, tuple[int, int, int]]


def keep(
    box: Box,
    source: Source,
    dst: Source,
    *,
    done: Callable[[Transferred], None],
    failed: Callable[[NbkitError], None],
    ended: Callable[[], bool] = lambda: False,
    **options: Any,
) -> None:
    """Sync `source` to `dst` on the box now and whenever something in it changes, until `ended()`; a lost link is waited for.

    The folder is looked at, not subscribed to: that works on every file system, shared ones too.

    Args:
        done: Told of each sync.
        failed: Told why one did not come about; it is tried again.
        options: As sync takes them.

    Raises: NbkitError where the first sync does not come about; what ended the session for good.
    """
    before, first = seen(os.fspath(source)), True
    with held(box.session):
        while not ended():
            try:
                done(sync(box, source, dst, growing=True, **options))
                first = False
            except UnreachableError as error:
                failed(error)
                while not box.session.wait(_CALM_S) and box.session.error is None and not ended():
                    pass
                if box.session.error is not None:
                    raise box.session.error from error
                continue
            except NbkitError as error:
                if first:
                    raise
                failed(error)
                before = _changed(os.fspath(source), before, ended, time.monotonic() + _AGAIN_S)
                continue
            before = _changed(os.fspath(source), before, ended)


def _changed(folder: str, before: Seen, ended: Callable[[], bool], latest: float = float("inf")) -> Seen:
    """Wait until the folder is no longer as it was and has come to rest (or does not), or until `latest`; how it is then."""
    took = 0.0
    while time.monotonic() < latest and not ended():
        time.sleep(max(LOOK_S, took / _SHARE))
        start = time.monotonic()
        now = seen(folder)
        took = time.monotonic() - start
        while now != before:
            time.sleep(_CALM_S)
            later = seen(folder)
            if later == now or time.monotonic() - start > _BUSY_S:
                return later
            now = later
    return before


def seen(folder: str) -> Seen:
    """Each file and link below `folder`: when it was changed (ns), its size and its mode."""
    found: Seen = {}
    waiting = [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    try:
                        about = entry.stat(follow_symlinks=False)
                    except OSError:
                        continue  # gone again
                    found[entry.path] = (about.st_mtime_ns, about.st_size, about.st_mode)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except OSError:
            continue
    return found
