"""The bar of parts: what it shows, in a notebook and as text, and the verdict it prints."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from nbkit.memory.view import Bar

PARTS = {"weights": 10.0, "optimizer": 4.0, "activations": 5.9, "norms": 0.1}
CARD = Bar(PARTS, 21.0, 22.0, 20.0, 24.0, room_gib=22.2, room_name="L4")


class TestSegments:
    def test_they_add_up_to_the_device(self):
        """Parts, what the allocator holds beside them, and CUDA: together what nvidia-smi shows."""
        assert 22 == pytest.approx(sum(gib for _, gib, _, _ in CARD.segments))

    def test_what_is_too_small_is_put_together(self):
        """Below a hundredth of the axis a part is not seen: it is called other, and not lost."""
        assert ["weights", "optimizer", "activations", "other"] == [name for name, *_ in CARD.segments][:4]

    def test_parts_alone_are_enough(self):
        """A formula knows no reserved memory: nothing is invented."""
        assert 20 == pytest.approx(sum(gib for _, gib, _, _ in Bar(PARTS).segments))

    def test_nothing_is_drawn_of_nothing(self):
        """No parts, no failure."""
        assert () == Bar({}).segments
        assert "svg" in Bar({})._repr_html_()


class TestVerdict:
    @pytest.mark.parametrize(
        ("room", "words"),
        [
            (30, "Fits: 6.0 GiB of the 30.0 GiB that L4 gives"),
            (24, "Fits: 0.0 GiB"),
            (22.2, "Tight"),
            (19, "low end is 1.0 GiB"),
        ],
    )
    def test_follows_the_range(self, room, words):
        """Fits by the high end, tight between, and by how much it does not."""
        assert words in Bar(PARTS, 21.0, 22.0, 20.0, 24.0, room_gib=room, room_name="L4").verdict

    def test_no_room_no_verdict(self):
        """Without a card nothing is judged."""
        assert "" == Bar(PARTS).verdict


class TestShown:
    def test_the_html_is_well_formed_and_says_all(self):
        """One SVG with a label, a box a segment with its number, the range, the card, and the verdict in words."""
        html = CARD._repr_html_()
        root = ET.fromstring(html)
        boxes = list(root.iter("rect"))
        assert len(CARD.segments) == len(boxes)
        assert 640 * 22 / 24 == pytest.approx(sum(float(box.get("width")) for box in boxes), abs=0.5)
        for text in ("weights: 10.00 GiB", "range: 20.0 to 24.0 GiB", "L4: 22.2 GiB usable", "Tight"):
            assert text in html

    def test_names_are_escaped(self):
        """A name from a model's repository cannot become markup."""
        assert "<b>" not in Bar({"<b>": 1.0}, room_gib=2, room_name="<b>")._repr_html_()

    def test_the_text_has_the_same(self):
        """Letters in proportion, the room as a bar across, the legend and the verdict."""
        line, legend, verdict = str(CARD).splitlines()
        assert round(60 * 10 / 24) == line.count("#")
        assert round(60 * 22.2 / 24) == line.index("|")
        assert "# weights 10.00" in legend
        assert CARD.verdict == verdict
