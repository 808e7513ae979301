"""`sae.pretrained=OWNER/NAME` ended in a traceback where no httpx is installed, which is so for users (hub #4802)."""

import sys

import pytest

from cocomix.sae import load_sae
from cocomix.utils.errors import CocomixError


def test_an_autoencoder_that_cannot_be_downloaded_is_one_sentence_without_httpx(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CocomixError, match="someone/some-sae") as refusal:
        load_sae("someone/some-sae", layer=1, d_model=32, k=8)
    assert "\n" not in str(refusal.value)
