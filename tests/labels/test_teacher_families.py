"""The table of families in the docs: a sample of it is tried again; `make test-all` tries all families."""

import re

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from benchmarks.teacher_families import BROKEN, GENERAL, PAGE, REFUSED, UNTRIED, WORKS, trial

SAMPLE = {
    "gpt2": WORKS,
    "llama": WORKS,
    "qwen3": WORKS,
    "gemma3": WORKS,
    "mixtral": WORKS,
    "deepseek_v3": WORKS,
    "bloom": GENERAL,
    "mamba": GENERAL,
    "diffllama": GENERAL,  # two attentions a block: exact would be wrong without a word
    "cpmant": REFUSED,
}


def listed() -> dict[str, str]:
    """What the page says of each family."""
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    statuses = {status.capitalize(): status for status in (WORKS, GENERAL, REFUSED, UNTRIED, BROKEN)}
    families: dict[str, str] = {}
    for section in sections:
        title, _, text = section.partition("\n")
        names = re.findall(r"(?:^\| |, |^)`([\w-]+)`", text, flags=re.MULTILINE)
        families |= dict.fromkeys(names, statuses[title])
    return families


def test_the_page_has_every_family_and_none_is_broken() -> None:
    families = listed()
    assert set(families) == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert BROKEN not in families.values()


@pytest.mark.parametrize("family", SAMPLE)
def test_a_sample_comes_out_as_the_page_says(family: str) -> None:
    assert trial(family).status == SAMPLE[family] == listed()[family]
