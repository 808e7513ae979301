"""Registries keep their promise: one class and one line, from inside or outside, and nothing else knows a name."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from cocomix import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.data import SOURCES
from cocomix.labels import RULES
from cocomix.model import BACKBONES, MIXERS, PREDICTORS, Mixer, register_mixer
from cocomix.objectives import OBJECTIVES, NtpStudent
from cocomix.sae import FORMATS
from cocomix.utils.errors import CocomixError, ConfigError
from cocomix.utils.registry import Registry

ROOT = Path(__file__).parents[1]
REGISTRIES: list[Registry[Any]] = [SOURCES, FORMATS, RULES, BACKBONES, PREDICTORS, MIXERS, OBJECTIVES]
ENTRIES = [(registry, name) for registry in REGISTRIES for name in registry]
PAGE = (ROOT / "docs/howto/extend.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("registry", "name"), ENTRIES, ids=[f"{one.kind}-{name}" for one, name in ENTRIES])
def test_an_entry_can_be_deleted(registry: Registry[Any], name: str) -> None:
    cls, order = registry[name], list(registry)
    registry.unregister(name)
    try:
        with pytest.raises(ConfigError, match=f"there is no {re.escape(registry.kind)} '{name}'; choose one of"):
            registry.choose(name)
        assert name not in registry.names.split(", ")
        for other in registry:
            assert registry.choose(other).name == other and registry.summary(other)
    finally:
        kept = {other: registry[other] for other in registry}
        for other in kept:
            registry.unregister(other)
        for other in order:
            registry.register(cls if other == name else kept[other])
    assert list(registry) == order


def test_no_code_asks_which_kind_it_has() -> None:
    """What differs between kinds is in their classes: nobody compares a kind's name with a text."""
    compared = re.compile(
        r"\b(mixer|channel|backbone|rule|corpus\.source|objective|format)\"?\]?\s*(==|!=|in)\s*[\"({\[]"
    )
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sorted((ROOT / "src/cocomix").rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if compared.search(line)
    ]
    # What is compared with plain next-token students is a matter of the report, not of a kind.
    assert [one for one in found if 'objective"] == "ntp"' not in one and 'objective == "ntp"' not in one] == []


def test_every_page_block_is_short_and_shows_each_kind() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    assert all(len(block.splitlines()) < 40 for block in blocks)
    for function in ("register_source", "register_format", "register_rule", "register_mixer", "register_objective"):
        assert any(f"@{function}" in block for block in blocks), function


def test_a_class_without_a_name_or_with_a_taken_one_is_refused() -> None:
    class Nameless(Mixer):
        def forward(self, hidden: torch.Tensor, vector: torch.Tensor | None, upper_blocks: Any) -> torch.Tensor:
            return hidden

    with pytest.raises(CocomixError, match="Nameless has no `name`"):
        register_mixer(Nameless)
    Nameless.name = "add"
    with pytest.raises(CocomixError, match="there is a mixer 'add' already"):
        register_mixer(Nameless)
    with pytest.raises(ValueError, match="settings of the objective ntp, not of 'kd'"):
        NtpStudent(objective="kd")


def test_a_mixer_from_outside_is_saved_and_loaded(tmp_path: Path) -> None:
    class HalfMixer(Mixer):
        """h + share * c."""

        name = "half"

        def __init__(self, hidden_size: int, share: float = 0.5) -> None:
            super().__init__(hidden_size)
            self.share = share

        def forward(self, hidden: torch.Tensor, vector: torch.Tensor | None, upper_blocks: Any) -> torch.Tensor:
            assert vector is not None
            return upper_blocks.run(hidden + self.share * vector)

    register_mixer(HalfMixer)
    try:
        shape = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2}
        sizes = {"concept_layer": 1, "num_concepts": 10, "concept_top_k": 2, "max_position_embeddings": 8}
        config = CoCoMixConfig(**shape, **sizes, mixer="half", mixer_options={"share": 0.25})
        model = CoCoMixForCausalLM(config).eval()
        model.save_pretrained(tmp_path)
        ids = torch.arange(6)[None]
        again = CoCoMixForCausalLM.from_pretrained(tmp_path).eval()
        assert torch.equal(again(ids).logits, model(ids).logits)
        with pytest.raises(ConfigError, match="the mixer half has no option 'part'; it takes share"):
            CoCoMixConfig(**shape, **sizes, mixer="half", mixer_options={"part": 1})
    finally:
        MIXERS.unregister("half")
