"""Offers: the frozen snapshot, its filters, its honesty, and the way to the live market."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import pytest

from nbkit.errors import MissingPackageError, NbkitError
from nbkit.hardware import offers
from nbkit.hardware.offers import offer_of


class TestSnapshot:
    def test_holds_the_clouds_of_the_mission(self):
        """Colab, AWS p3, p4d and p5, g5 and g6, Lambda, RunPod and GCP with TPUs are there, each row with a source."""
        found = offers()
        assert {"AWS", "Colab", "GCP", "Kaggle", "Lambda", "Modal", "RunPod"} == {one.provider for one in found}
        families = {one.name.split(".")[0] for one in found if one.provider == "AWS"}
        assert {"p3", "p4d", "p5", "g4dn", "g5", "g6", "g6e"} <= families
        assert {"TPU v2", "TPU v3", "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e"} == {
            o.gpu for o in found if o.spec.is_tpu
        }
        assert all(one.source and one.usd_per_hour >= 0 and one.count >= 1 for one in found)

    def test_no_offer_is_listed_twice(self):
        """A machine has one price on demand and one as spot."""
        keys = [(one.provider, one.name, one.spot) for one in offers()]
        assert len(keys) == len(set(keys))

    def test_a_price_without_a_source_says_so(self):
        """A price from memory has no date, is marked in the table, and can be left out."""
        doubtful = [one for one in offers() if not one.verified]
        assert doubtful
        assert {"unknown"} == {one.date for one in doubtful}
        assert "unknown, unverified" in str(offers("V100", provider="gcp") or offers("TPU v2"))
        assert {True} == {one.verified for one in offers(verified_only=True)}

    def test_spot_is_cheaper(self):
        """Where a machine has both prices, spot is the lower."""
        price = {(one.provider, one.name, one.spot): one.usd_per_hour for one in offers()}
        both = [key for key in price if key[2] and (*key[:2], False) in price]
        assert len(both) >= 8
        assert all(price[key] < price[(*key[:2], False)] for key in both)


class TestFilters:
    def test_by_card_in_any_spelling(self):
        """A card's name gives its offers; a family gives all sizes; the cheapest machine is first."""
        assert {"A100-80GB"} == {one.gpu for one in offers("a100-80")}
        assert {"A100-40GB", "A100-80GB", "A100-80GB PCIe"} == {one.gpu for one in offers("A100")}
        prices = [one.usd_per_hour for one in offers("A100")]
        assert sorted(prices) == prices

    def test_by_memory_count_price_and_kind(self):
        """Each condition holds for every offer given, and together they narrow."""
        found = offers(min_memory_gib=40, count=1, max_usd_per_hour=3, spot=False, tpu=False)
        assert found
        assert all(o.memory_gib >= 40 and o.count == 1 and o.usd_per_hour <= 3 and not o.spot for o in found)
        assert min(o.total_memory_gib for o in offers(min_total_gib=300)) >= 300
        assert {"Lambda"} == {o.provider for o in offers(provider="lambda")}

    def test_nothing_found_is_an_empty_table(self):
        """No offer meets impossible conditions, and that is shown, not raised."""
        found = offers(min_memory_gib=1000)
        assert [] == found
        assert "Offers" in found._repr_html_()

    @pytest.mark.parametrize(
        ("words", "message"), [({"gpu": "RTX 4090 Ti"}, "No card named"), ({"provider": "azur"}, "No offers of")]
    )
    def test_a_wrong_name_is_a_usage_error(self, words, message):
        """An unknown card or provider is not an empty answer."""
        with pytest.raises(NbkitError, match=message) as caught:
            offers(**words)
        assert 2 == caught.value.exit_code


class TestLive:
    def test_without_the_extra_it_says_what_to_install(self):
        """The live market needs gpuhunt; without it the hint installs the cloud extra."""
        if importlib.util.find_spec("gpuhunt"):
            pytest.skip("gpuhunt is installed here")
        with pytest.raises(MissingPackageError) as caught:
            offers(live=True)
        assert 'pip install "nbkit-llm[cloud]"' in caught.value.hint

    @pytest.mark.parametrize(
        ("gpu_name", "memory", "vendor", "expected"),
        [("A100", 80.0, "nvidia", "A100-80GB"), ("RTX4090", 24.0, "nvidia", "RTX 4090"), ("v5litepod", 0, "google", "TPU v5e"),
         ("v6e", 0, "google", "TPU v6e"), ("H100NVL", 94.0, "nvidia", "H100-94GB NVL"), ("MI300X", 192.0, "amd", None)],
    )  # fmt: skip
    def test_a_catalogue_item_becomes_an_offer(self, gpu_name, memory, vendor, expected):
        """gpuhunt 0.1.34's item, with its short names and a TPU's missing memory, maps to the catalogue or to nothing."""
        item = SimpleNamespace(provider="aws", instance_name="x", location="us-east-1", price=2.0, gpu_count=2, spot=True,
                               gpu_name=gpu_name, gpu_memory=memory, gpu_vendor=vendor)  # fmt: skip
        found = offer_of(item, "2026-11-30")
        assert expected == (found and found.gpu)
        if found:
            assert (2.0, 1.0, True, "2026-11-30") == (
                found.usd_per_hour,
                found.usd_per_gpu_hour,
                found.spot,
                found.date,
            )
