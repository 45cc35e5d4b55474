"""The relay's protocol, both ends in one process, over a line that is cut anywhere: each byte once, in order."""

from __future__ import annotations

import os
import random

import pytest

from nbkit.ssh.there import frames as f
from nbkit.ssh.there.flow import WINDOW, Stream
from nbkit.ssh.there.mux import Mux
from nbkit.ssh.there.spool import Spool


class Held(Stream):
    """Keeps what comes; passes it on only when told."""

    def __init__(self, end: End, request=None, *, keep=False):
        super().__init__(request, keep=keep)
        self.end_of, self.got, self.ended, self.stops = end, bytearray(), 0, []

    def on_data(self, view):
        assert not self.ended
        self.got += view

    def on_end(self):
        self.ended += 1

    def on_stop(self, reason):
        self.stops.append(reason)

    def pass_on(self):
        self.end_of.mux.consumed(self, len(self.got) - self.passed_on)


class End:
    """One end: a Mux, its streams, and the bytes on their way to the other."""

    def __init__(self, spool=None, memory=1 << 20):
        self.mux = Mux(self.opened, spool=spool, memory=memory)
        self.all: dict[int, Held] = {}
        self.wire = bytearray()
        self.notes: list[str] = []
        self.mux.noted = self.notes.append
        self.reader = f.Reader(self.mux)

    def opened(self, request):
        stream = Held(self, keep=bool(request.get("keep")))
        self.all[request["name"]] = stream
        return stream

    def gather(self):
        for part in self.mux.take():
            self.wire += part


class Pair:
    """A client and a relay, and a line between them."""

    def __init__(self, spool=None):
        self.client, self.relay = End(), End(spool)
        self.names = 0
        self.begin()

    def begin(self):
        for end in (self.client, self.relay):
            end.mux.lost()
            end.wire.clear()
            end.reader = f.Reader(end.mux)
            end.mux.begin(f.frame(f.PING))

    def open(self, *, keep=False):
        self.names += 1
        stream = Held(self.client, {"name": self.names, "keep": keep})
        self.client.all[self.names] = stream
        self.client.mux.open(stream)
        return stream

    def move(self, source: End, target: End, most: int):
        source.gather()
        part = bytes(source.wire[:most])
        del source.wire[:most]
        target.reader.feed(memoryview(part))

    def settle(self):
        for _ in range(2000):
            for end in (self.client, self.relay):
                for stream in end.all.values():
                    stream.pass_on()
                end.mux.tick()
            self.move(self.client, self.relay, 1 << 30)
            self.move(self.relay, self.client, 1 << 30)
            if not (self.client.mux.waits() or self.relay.mux.waits()):
                return
        raise AssertionError("they never come to rest")


class Storm:
    """Whatever can happen to a pair, by the dice."""

    def __init__(self, dice: random.Random, pair: Pair):
        self.dice, self.pair = dice, pair
        self.sent: dict[Held, bytearray] = {}

    def something(self):
        """One thing."""
        what = self.dice.random()
        pair, dice = self.pair, self.dice
        live = [s for end in (pair.client, pair.relay) for s in end.all.values() if not s.fin]
        if what < 0.05 and pair.names < 12:
            pair.open(keep=dice.random() < 0.5)
        elif what < 0.45 and live:
            self.write(dice.choice(live))
        elif what < 0.47 and live:
            stream = dice.choice(live)
            stream.end_of.mux.finish(stream)
        elif what < 0.80:
            pair.move(*dice.sample([pair.client, pair.relay], 2), dice.randrange(1, 400_000))
        elif what < 0.95:
            for stream in [*pair.client.all.values(), *pair.relay.all.values()]:
                if dice.random() < 0.5:
                    stream.pass_on()
        else:
            pair.begin()

    def write(self, stream: Held):
        data = self.dice.randbytes(int(self.dice.choice([1, 50, 5000, 300_000]) * self.dice.random()) + 1)
        taken = stream.end_of.mux.write(stream, data)
        self.sent.setdefault(stream, bytearray()).extend(data[:taken])


class TestCuts:
    @pytest.mark.parametrize("seed", range(60))
    def test_each_byte_once_in_order(self, seed, tmp_path):
        """Streams open, write, end and are read at random while the line is cut at random, within frames too."""
        spool = Spool(str(tmp_path), 8 << 20)
        storm = Storm(random.Random(seed), Pair(spool))
        for _ in range(400):
            storm.something()
        pair = storm.pair
        pair.settle()
        for end, other in ((pair.client, pair.relay), (pair.relay, pair.client)):
            for name, stream in end.all.items():
                assert bytes(storm.sent.get(stream, b"")) == bytes(other.all[name].got)
                assert int(stream.fin) == other.all[name].ended
        for stream in [*pair.client.all.values(), *pair.relay.all.values()]:
            stream.end_of.mux.finish(stream)
        pair.settle()
        assert [0, 0, 0] == [pair.client.mux.held, pair.relay.mux.held, spool.held]
        assert [{}, {}] == [pair.client.mux.streams, pair.relay.mux.streams]

    def test_the_last_acknowledgement_may_be_lost(self):
        """One end has forgotten the stream, the other missed the last word: it is told again, and forgets too."""
        pair = Pair()
        stream = pair.open()
        pair.settle()
        there = pair.relay.all[1]
        pair.relay.mux.finish(there)
        pair.settle()
        pair.client.mux.finish(stream)
        pair.move(pair.client, pair.relay, 1 << 20)
        assert {} == pair.relay.mux.streams
        assert {} != pair.client.mux.streams
        pair.begin()
        pair.settle()
        assert ({}, 1) == (pair.client.mux.streams, there.ended)

    def test_an_opening_may_be_lost(self):
        """A stream whose opening never arrived is opened again, once, with its data."""
        pair = Pair()
        pair.settle()
        stream = pair.open()
        pair.client.mux.write(stream, b"first words")
        pair.client.gather()
        pair.begin()
        pair.settle()
        pair.begin()
        pair.settle()
        assert [1] == list(pair.relay.all)
        assert b"first words" == pair.relay.all[1].got

    def test_a_stop_reaches_the_other_end_whatever_breaks(self):
        """Who reads no more says so again after a break; what was on its way is thrown away, the stream ends."""
        pair = Pair()
        stream = pair.open()
        pair.settle()
        there = pair.relay.all[1]
        pair.relay.mux.write(there, os.urandom(200_000))
        pair.client.mux.cancel(stream, "enough")
        pair.client.mux.finish(stream)
        pair.client.gather()
        pair.begin()
        pair.settle()
        assert ["enough"] == there.stops
        pair.relay.mux.finish(there)
        pair.settle()
        assert ({}, {}, 0) == (pair.client.mux.streams, pair.relay.mux.streams, pair.relay.mux.held)

    def test_a_repetition_is_thrown_away(self):
        """Bytes that came before count once, also where new ones follow them in the same frame."""
        pair = Pair()
        stream = pair.open()
        pair.settle()
        for at, data in ((0, b"once"), (0, b"once"), (2, b"ce upon"), (0, b"o")):
            pair.client.reader.feed(memoryview(f.HEAD.pack(f.DATA, 1, at, len(data)) + data))
        assert b"once upon" == stream.got

    def test_a_note_is_told_once(self):
        """A sentence for the user survives a break, and is not told twice."""
        pair = Pair()
        pair.settle()
        pair.relay.mux.note("the disk is full")
        pair.relay.gather()
        pair.begin()
        pair.settle()
        pair.begin()
        pair.settle()
        assert ["the disk is full"] == pair.client.notes


class TestFlow:
    def test_a_stream_that_is_not_read_holds_up_no_other(self):
        """It gets its window and no more; another goes on; what is refused is the writer's to keep."""
        pair = Pair()
        slow, quick = pair.open(), pair.open()
        for _ in range(50):
            pair.client.mux.write(slow, bytes(200_000))
            pair.move(pair.client, pair.relay, 1 << 30)
            pair.move(pair.relay, pair.client, 1 << 30)
        assert len(pair.relay.all[1].got) == WINDOW
        pair.client.mux.write(quick, b"quick")
        pair.move(pair.client, pair.relay, 1 << 30)
        assert b"quick" == pair.relay.all[2].got

    def test_the_window_of_a_quick_reader_grows(self):
        """What is passed on as fast as it comes may have more on its way: a long link is not held up."""
        pair = Pair()
        stream = pair.open()
        for _ in range(60):
            pair.client.mux.write(stream, bytes(250_000))
            pair.settle()
        assert stream.limit - stream.acked > 4 * WINDOW

    def test_memory_then_disk_then_no_more(self, tmp_path):
        """A stream that keeps what its source gives: to a limit in memory, then on disk, then its source is held up."""
        spool = Spool(str(tmp_path), 3 << 20)
        pair = Pair(spool)
        pair.open(keep=True)
        pair.settle()
        there = pair.relay.all[1]
        pair.relay.mux.lost()
        content = bytearray()
        while taken := pair.relay.mux.write(there, chunk := os.urandom(100_000)):
            content += chunk[:taken]
        assert "3 MiB on disk" in spool.full
        assert 3_000_000 < spool.held <= 3 << 20
        assert pair.relay.mux.held < 2_000_000
        assert [] == list(tmp_path.iterdir())
        pair.begin()
        pair.settle()
        assert content == pair.client.all[1].got
        assert (0, "") == (spool.held, spool.full)

    def test_a_disk_that_loses_what_it_held(self, tmp_path):
        """The stream ends, with the reason; what came before it was delivered; nothing is passed off as the whole."""
        spool = Spool(str(tmp_path), 3 << 20)
        pair = Pair(spool)
        pair.open(keep=True)
        pair.settle()
        there, here = pair.relay.all[1], pair.client.all[1]
        pair.relay.mux.lost()
        while pair.relay.mux.write(there, os.urandom(100_000)):
            pass
        os.ftruncate(spool._last.handle, 1 << 20)
        pair.begin()
        pair.settle()
        (reason,) = here.stops
        assert "what was kept cannot be read again: the spool has lost" in reason
        assert 1_000_000 < len(here.got) < there.passed_on + 3_500_000

    def test_what_the_other_end_may_not_say(self):
        """More than was allowed, a gap, an acknowledgement of what was never sent, and noise: the line is given up."""
        for wrong in (
            f.HEAD.pack(f.DATA, 1, 5, 3) + b"abc",
            f.ack(1, 7, WINDOW),
            f.frame(f.FIN, 1, 9),
            f.frame(f.ACK, 1, 0, b"short"),
            b"SSH-2.0-OpenSSH_9.2 and more of it",
        ):
            pair = Pair()
            pair.open()
            pair.settle()
            with pytest.raises(f.BrokenError):
                pair.client.reader.feed(memoryview(wrong))
        pair = Pair()
        pair.open()
        pair.settle()
        much = b"".join(f.HEAD.pack(f.DATA, 1, at, f.CHUNK) + bytes(f.CHUNK) for at in range(0, 2 * WINDOW, f.CHUNK))
        with pytest.raises(f.BrokenError, match="allowed"):
            pair.client.reader.feed(memoryview(much))
