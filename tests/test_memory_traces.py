"""Traces at lengths that were not run."""

from __future__ import annotations

from nbkit.memory.trace import Trace
from nbkit.memory.traces import MOST, Traces
from tests.steps import step


class TestTraces:
    def test_lengths_between_are_interpolated(self):
        """Both ends are run; every other length is exact without being run, for all sizes are constant or grow with it."""
        asked = []
        traces = Traces(lambda tokens: asked.append(tokens) or step(tokens))
        traces.prepare((100, 300, 500))
        assert [step(t) for t in (200, 400, 450)] == [traces.at(t) for t in (200, 400, 450)]
        assert [100, 500] == asked

    def test_keys_are_names_only(self):
        """Two runs may number their tensors differently: what counts is the order of allocations and frees."""

        def shifted(tokens):
            trace = step(tokens)

            def renamed(events):
                return tuple((key + tokens if key >= 0 else key - tokens, size) for key, size in events)

            return Trace(trace.resident, renamed(trace.first), renamed(trace.steady), tokens)

        traces = Traces(shifted)
        traces.prepare((100, 500))
        traces.at(300)
        assert step(200).peak_bytes() == traces.at(200).peak_bytes()
        assert [100, 500] == sorted(traces._known)

    def test_what_dies_together_may_die_in_any_order(self):
        """The frees between two allocations come in another order at each length: the shape is the same."""

        def shaken(tokens):
            def shake(events):
                found, dying = [], []
                for event in events:
                    if event[1]:
                        found += dying[:: -1 if tokens % 2 else 1]
                        dying = []
                        found.append(event)
                    else:
                        dying.append(event)
                return (*found, *dying)

            trace = step(tokens)
            return Trace(trace.resident, shake(trace.first), shake(trace.steady), tokens)

        traces = Traces(shaken)
        traces.prepare((101, 500))
        assert shaken(300).peak_bytes() == traces.at(300).peak_bytes()
        assert [101, 500] == sorted(traces._known)

    def test_what_grows_with_the_square_lies_on_a_parabola(self):
        """Attention scores: four lengths are run, the last as a check, and any other is exact to its rounding."""
        traces = Traces(lambda tokens: step(tokens, bend=0.01))
        traces.prepare((100, 500))
        for tokens in (150, 333, 480):
            pairs = zip(step(tokens, bend=0.01).steady, traces.at(tokens).steady, strict=True)
            assert max(abs(one[1] - two[1]) for one, two in pairs) <= 2
        assert [100, 200, 300, 500] == sorted(traces._known)

    def test_a_bend_of_another_kind_is_run(self):
        """Sizes that jump at 220 tokens lie on no parabola, which the check at a fourth length finds out."""

        def bent(tokens):
            return step(tokens, bend=0.02 if tokens > 220 else 0.0)

        traces = Traces(bent)
        traces.prepare((100, 500))
        assert bent(215) == traces.at(215)
        assert 215 in traces._known

    def test_where_shapes_differ_the_length_is_run_till_there_are_many(self):
        """One tile of the loss more from every tenth token on: at last the next longer length that is known stands in."""
        traces = Traces(lambda tokens: step(tokens, tiles=1 + tokens // 10))
        traces.prepare((100, 500))
        found = [traces.at(tokens) for tokens in range(120, 480, 10)]
        assert step(120, tiles=13) == found[0]
        assert MOST == len(traces._known)
        assert traces.at(475).tokens == 500
