"""The table of cards: what is usable, where it is from, and how a name is found."""

from __future__ import annotations

import pytest

from nbkit.errors import NbkitError
from nbkit.hardware import CARDS, card


class TestCards:
    def test_usable_is_less_than_the_label(self):
        """No card offers its label, no card loses more than a ninth of it, and each number has a source."""
        assert [] == [one.name for one in CARDS if not 8 / 9 * one.label_gb < one.usable_gib < one.label_gb]
        assert [] == [one.name for one in CARDS if one.measured == one.source.startswith("label")]
        assert [] == [one.name for one in CARDS if not one.source]

    def test_bf16_begins_with_ampere(self):
        """The cards without bf16 are exactly the T4 and the V100s."""
        assert ["T4", "V100-16GB", "V100-32GB"] == [one.name for one in CARDS if not one.bf16]

    @pytest.mark.parametrize("name", ["A100-40GB", "a100 40gb", "A100_40GB", "A10040GB"])
    def test_a_name_is_found_however_it_is_written(self, name):
        """Case, spaces and dashes do not matter."""
        assert 39.56 == card(name).usable_gib

    @pytest.mark.parametrize(
        ("name", "hint"),
        [("RTX 4090 Ti", "did you mean RTX 4090? known: T4, V100-16GB, "), ("A100", "did you mean A100-40GB? known: "),
         ("MI300X", "known: T4, "), ("", "known: T4, ")],
    )  # fmt: skip
    def test_an_unknown_name_lists_the_known(self, name, hint):
        """The error names what was asked, the nearest card and all the others, and is a usage error."""
        with pytest.raises(NbkitError) as caught:
            card(name)
        assert f"No card named {name!r} in nbkit's table." == caught.value.message
        assert caught.value.hint.startswith(hint)
        assert 2 == caught.value.exit_code
