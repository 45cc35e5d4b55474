from __future__ import annotations

import hashlib
import os
import signal
import threading
import time

import pytest

from nbkit.remote.there.threads import Aside, batch

linux = pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="no batch scheduling on this system")


def test_work_is_done_with_every_piece_in_turn_whatever_its_length() -> None:
    aside, whole, written = Aside(), hashlib.sha256(), bytearray()
    pieces = [os.urandom(size) for size in (0, 1, 64 * 1024 - 1, 64 * 1024, 1 << 20, 7, 300_000)]
    for piece in pieces:
        with aside.doing(whole.update, memoryview(piece)):
            written += piece
    assert written == b"".join(pieces)
    assert whole.digest() == hashlib.sha256(written).digest()


def test_block_that_fails_ends_when_the_work_has_ended() -> None:
    aside, first, second = Aside(), hashlib.sha256(), hashlib.sha256()
    piece = memoryview(bytearray(os.urandom(8 << 20)))
    held = bytes(piece)
    with pytest.raises(OSError, match="disk"), aside.doing(first.update, piece):
        raise OSError("disk")
    piece[:] = bytes(len(piece))  # its memory is used for the next
    assert first.digest() == hashlib.sha256(held).digest()
    with aside.doing(second.update, piece):
        pass
    assert second.digest() == hashlib.sha256(bytes(len(piece))).digest()


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_what_the_work_raises_comes_to_its_caller(size: int) -> None:
    aside, content = Aside(), bytes(size)

    def work(view: bytes, at: int) -> None:
        raise OSError(28, f"{len(view)} at {at}")

    with pytest.raises(OSError, match=f"{size} at 7"), aside.doing(work, content, 7):
        pass
    done: list[int] = []
    with aside.doing(done.append, size * b"x"):
        pass
    assert len(done) == 1


def test_interrupt_waits_for_the_work() -> None:
    aside, main = Aside(), threading.get_ident()
    began, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work(_: bytes) -> None:
        began.set()
        go_on.wait(10)
        ended.set()

    def interrupt() -> None:
        began.wait(10)
        for _ in range(3):
            signal.pthread_kill(main, signal.SIGINT)
            time.sleep(0.05)
        go_on.set()

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt), aside.doing(work, bytes(1 << 20)):
        pass
    assert ended.is_set()
    done: list[int] = []
    with aside.doing(lambda content: done.append(len(content)), bytes(1 << 20)):
        pass
    assert done == [1 << 20]


@linux
def test_batch_holds_for_the_block_and_for_threads_begun_in_it() -> None:
    found: list[int] = []
    with batch():
        thread = threading.Thread(target=lambda: found.append(os.sched_getscheduler(0)))
        thread.start()
        thread.join()
        found.append(os.sched_getscheduler(0))
    assert found == [os.SCHED_BATCH, os.SCHED_BATCH]
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


@linux
def test_thread_that_is_scheduled_otherwise_stays_so() -> None:
    found: list[int] = []

    def idle() -> None:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        with batch():
            found.append(os.sched_getscheduler(0))
        found.append(os.sched_getscheduler(0))

    thread = threading.Thread(target=idle)
    thread.start()
    thread.join()
    assert found == [os.SCHED_IDLE, os.SCHED_IDLE]


@linux
def test_another_thread_by_its_number_for_as_long_as_it_lives() -> None:
    go_on = threading.Event()
    thread = threading.Thread(target=go_on.wait)
    thread.start()
    number = thread.native_id or 0
    with batch(number):
        assert os.sched_getscheduler(number) == os.SCHED_BATCH
        assert os.sched_getscheduler(0) == os.SCHED_OTHER
    assert os.sched_getscheduler(number) == os.SCHED_OTHER
    with batch(number):
        go_on.set()
        thread.join()
