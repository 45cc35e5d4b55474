"""What holds the kernels of a Jupyter server, told apart: its end leaves kernels of boxes alone, shutting one down ends it."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Callable
from typing import Any


def attend(pool: Any, kind: type) -> None:
    """Have a server's kernel managers treat those of `kind`, our provisioner, as a box's; others are none the wiser.

    A server ends by `shutdown_all`; people and scripts that end one kernel do not. After a restart or an interrupt that
    failed, a server drops a kernel without a word to its provisioner: it is told here.
    """
    shut_down, remove = getattr(pool, "shutdown_all", None), getattr(pool, "remove_kernel", None)
    if remove is None or not inspect.iscoroutinefunction(shut_down) or hasattr(pool, "nbkit_leaves"):
        return

    def ours(kernel: Any) -> Any:
        here = getattr(kernel, "provisioner", None)
        return here if isinstance(here, kind) else None

    async def shutdown_all(*args: Any, **kwargs: Any) -> None:
        for one in pool.list_kernel_ids():
            kept = pool.get_kernel(one)
            here = ours(kept)
            if here is not None and here.on_close == "leave":
                kept.stop_restarter()
                kept.cleanup_connection_file()
                remove(one)
                await asyncio.to_thread(here.leave)
        await shut_down(*args, **kwargs)

    def remove_kernel(kernel_id: str) -> Any:
        kept = remove(kernel_id)
        here = ours(kept)
        if here is not None and here.has_process:
            threading.Thread(target=here.dropped, name="nbkit-kernel-dropped", daemon=True).start()
        return kept

    pool.shutdown_all, pool.remove_kernel, pool.nbkit_leaves = shutdown_all, remove_kernel, True


async def leave_dead(manager: Any, end: Callable[[], None]) -> bool:
    """Have a Jupyter server take a manager's kernel for dead, rather than start another; `end` clears away before it does.

    Returns: False where nothing starts kernels again.
    """
    restarter = getattr(manager, "_restarter", None)  # it has no public name
    if restarter is None:
        return False
    restarter.stop()
    await asyncio.to_thread(end)
    for callback in list(restarter.callbacks["dead"]):
        with contextlib.suppress(Exception):  # as the restarter itself has it
            callback()
    return True
