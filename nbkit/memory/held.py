"""What the allocator holds beyond its tensors: replayed over the data's lengths, or a stated share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nbkit.hardware.parts import GIB
from nbkit.memory.step import Job
from nbkit.memory.trace import Trace

# Without a trace it is not known. Replays of fixed lengths gave 1 to 8 % where TRL's head goes in tiles, 4 to 40 % where logits
# are held; of varying lengths 4 % and 5 to 71 %, by luck and by the logits' share (docs/log.md).
FIXED_SHARE, VARYING_SHARE = 0.05, 0.10
STEPS = 3  # of one length: the first makes the optimizer's states, the second finds its blocks, a third changes nothing


@dataclass(frozen=True)
class Held:
    """Reserved memory, with what it rests on.

    Attributes:
        gib: In the middle one of several random orders of the data's batches.
        worst_gib: In the least lucky of them.
        limited: The card was known, and the run fits it: neither figure exceeds what the allocator can get there.
        notes: Sentences for the reader.
    """

    gib: float
    worst_gib: float
    limited: bool
    notes: tuple[str, ...]


def held(
    job: Job,
    lengths: Sequence[int],
    allocated_gib: float,
    longest: Trace | None,
    trace_at: Callable[[int, int], Trace | None],
    *,
    room_gib: float | None = None,
) -> Held:
    """What is reserved where `allocated_gib` is live at the peak.

    Args:
        lengths: Tokens of each row of the data; none, or one length, for batches that are all alike.
        longest: Trace of the job itself; None where its layers cannot be repeated.
        trace_at: The trace of another (batch, tokens).
        room_gib: What the allocator can get on the card: torch's gives its cache back before it fails
            (CUDACachingAllocator.cpp, release_cached_blocks), so a run that fits reserves no more. None for any card.
    """
    if job.device == "cpu":
        return Held(allocated_gib, allocated_gib, limited=False, notes=())
    if len(set(lengths)) < 2 or job.packed:
        return _of_one_length(job, allocated_gib, longest, room_gib)
    found = _replayed(job, lengths, allocated_gib, longest, trace_at, room_gib)
    if found is None:
        said = (
            f"The layers differ, so no trace was replayed: {VARYING_SHARE:.0%} are added for batches of varying length."
        )
        return _by_share(allocated_gib, VARYING_SHARE, room_gib, said)
    return found


def _of_one_length(job: Job, allocated_gib: float, step: Trace | None, room_gib: float | None) -> Held:
    """Every batch is like the job itself."""
    from nbkit.memory.allocator import Settings
    from nbkit.memory.replay import replay

    if step is None:
        said = f"The layers differ, so no trace was replayed: {FIXED_SHARE:.0%} are added for what is cached and of no use."
        return _by_share(allocated_gib, FIXED_SHARE, room_gib, said)
    limit = int(room_gib * GIB) if room_gib is not None and allocated_gib <= room_gib else None
    often = int(job.program.empties_cache)
    found = replay([step] * STEPS, Settings(limit_bytes=limit), empty_every=often)
    if found.failed_at is not None:
        limit, found = None, replay([step] * STEPS, empty_every=often)
    gib = allocated_gib + found.reserved_gib - found.allocated_gib
    said = (
        f"Every batch has one length: replayed through a model of the allocator, {found.fragmentation:.0%} of what it "
        "reserves hold no tensor at the worst."
    )
    gib = gib if limit is None else min(gib, limit / GIB)
    return Held(gib, gib, limit is not None, (said,))


def _by_share(allocated_gib: float, share: float, room_gib: float | None, said: str) -> Held:
    reserved = allocated_gib * (1 + share)
    limited = room_gib is not None and allocated_gib <= room_gib
    if limited:
        reserved = min(reserved, room_gib or reserved)
    return Held(reserved, reserved, limited, (said,))


def least_gib(step: Trace, *, allocated_gib: float | None = None, empty_every: int = 0) -> float:
    """The least that the allocator runs this step with, again and again, giving its cache back whenever it must: what lives
    at the peak, and holes that no order of the blocks avoids. Found by halving, to a thousandth.

    Args:
        allocated_gib: What lives, where that is not all in the trace (managed memory, workspaces).
    """
    from nbkit.memory.allocator import Settings
    from nbkit.memory.replay import replay

    def runs(gib: float) -> bool:
        limit = Settings(limit_bytes=int(gib * GIB))
        return replay([step] * STEPS, limit, empty_every=empty_every).failed_at is None

    free = replay([step] * STEPS, empty_every=empty_every)
    low, high = free.allocated_gib, free.reserved_gib
    while high - low > high / 1000:
        middle = (low + high) / 2
        low, high = (low, middle) if runs(middle) else (middle, high)
    return high + (0.0 if allocated_gib is None else allocated_gib - free.allocated_gib)


class _NoTraceError(Exception):
    """The layers of this model are not alike enough to repeat one of them."""


def _replayed(
    job: Job,
    lengths: Sequence[int],
    allocated_gib: float,
    longest: Trace | None,
    trace_at: Callable[[int, int], Trace | None],
    room_gib: float | None,
) -> Held | None:
    from nbkit.memory.replay import Reserved
    from nbkit.memory.traces import Traces

    def traced(tokens: int) -> Trace:
        found = trace_at(job.batch, tokens)
        if found is None:
            raise _NoTraceError
        return found

    if longest is None:
        return None
    traces = Traces(traced)
    traces.know(job.seq, longest)
    limit = int(room_gib * GIB) if room_gib is not None and allocated_gib <= room_gib else None
    try:
        over = Reserved(traces, lengths, job.batch, empty_every=int(job.program.empties_cache), limit_bytes=limit)
        if limit is not None and any(one.failed_at is not None for one in over.randoms):
            limit, over = None, over.without_limit()
        typical, lucky, unlucky = over.random, over.randoms[0], over.randoms[-1]
    except _NoTraceError:
        return None
    # What is allocated outside of the traces, or in managed memory, is in `allocated_gib` only.
    low, most, high = (allocated_gib + one.reserved_gib - one.allocated_gib for one in (lucky, typical, unlucky))
    said = (
        f"Reserved: {len(over.randoms)} random orders of the data's batches, replayed through a model of the allocator: "
        f"{low:.1f} to {high:.1f} GiB, by luck. In the middle one {typical.fragmentation:.0%} hold no tensor."
    )
    notes = [said]
    if limit is not None and typical.retries:
        notes.append(
            "The card fills up: the allocator then gives its cache back and asks anew, which costs time, not memory."
        )
    if limit is not None:
        most, high = (min(one, limit / GIB) for one in (most, high))
    return Held(most, max(most, high), limit is not None, tuple(notes))
