"""Which model is meant is said within seconds, before anything heavy is loaded."""

from __future__ import annotations

import time

import pytest

from nbkit.errors import ModelError
from nbkit.models import resolve

pytestmark = pytest.mark.train


def test_a_folder_with_a_config_is_a_model(tmp_path):
    """A local path is used as it is."""
    (tmp_path / "config.json").write_text("{}")
    assert str(tmp_path) == resolve(tmp_path)


def test_a_folder_without_a_config_is_refused(tmp_path):
    """The error names the folder and what is missing."""
    with pytest.raises(ModelError, match=r"holds no model: there is no config\.json"):
        resolve(tmp_path)


def test_an_adapter_folder_says_so(tmp_path):
    """A common mistake gets its own fix."""
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError) as caught:
        resolve(tmp_path)
    assert "it holds an adapter" in caught.value.hint


def test_a_path_that_is_not_there_is_not_looked_up_on_the_hub():
    """./x and /x are paths."""
    with pytest.raises(ModelError, match="is not a folder with a model"):
        resolve("./no/such/model")


def test_nonsense_is_neither():
    """A text that can be no hub id is refused as such."""
    with pytest.raises(ModelError, match="neither a folder here nor a hub id"):
        resolve("a b c")


def test_unknown_id_without_network_fails_fast():
    """Offline, an id that is not cached is an error in under five seconds that names the way out."""
    began = time.monotonic()
    with pytest.raises(ModelError, match="is not in the local hub cache") as caught:
        resolve("nobody/does-not-exist")
    assert "MODEL = 'embedded'" in caught.value.hint
    assert time.monotonic() - began < 5
