"""Students from shapes: families, widths matched by parameters, no dropout anywhere."""

import pytest
from torch import nn

from cocomix.model import CoCoMixForCausalLM, ModelShape, Sizes, build_mixed, build_plain, match_width, parameter_count
from cocomix.model.build import NO_IDS, SpecialIds
from cocomix.objectives import ConceptConfig
from cocomix.utils.errors import CocomixError

SIZES = {"vocab_size": 300, "seq_len": 32}


def mixed(shape: ModelShape, special: SpecialIds = NO_IDS) -> CoCoMixForCausalLM:
    sizes = Sizes(300, 32, 40, 5, 8, 1, special)
    return build_mixed(shape, ConceptConfig(concept_layer=1), sizes, num_concepts=40, concept_top_k=5)


@pytest.mark.parametrize("backbone", ["gpt2", "llama", "qwen3"])
def test_families_without_dropout(backbone: str) -> None:
    shape = ModelShape(backbone=backbone, width=32, layers=3, heads=4, kv_heads=None if backbone == "gpt2" else 2)
    plain = build_plain(shape, **SIZES)
    student = mixed(shape)
    for model in (plain, student):
        assert model.config.hidden_size == 32 and model.config.num_hidden_layers == 3
        assert all(module.p == 0 for module in model.modules() if isinstance(module, nn.Dropout))
    assert student.config.concept_top_k == 5 and student.config.dropout == 0
    # Same backbone at the same width: what differs is the concept head and the mixer.
    extra = sum(p.numel() for part in (student.channel, student.mixer) for p in part.parameters())
    assert student.num_parameters() - extra == plain.num_parameters()


@pytest.mark.parametrize("backbone", ["gpt2", "llama"])
def test_special_ids_are_the_tokenizers(backbone: str) -> None:
    shape = ModelShape(backbone=backbone, width=16, layers=2, heads=2)
    special = SpecialIds(bos_token_id=5, eos_token_id=7, pad_token_id=7)
    plain = build_plain(shape, special=special, **SIZES)
    student = mixed(shape, special)
    for model in (plain, student):
        assert (model.config.bos_token_id, model.config.eos_token_id) == (5, 7)
        assert model.get_input_embeddings().weight[7].any()  # a padding row would be frozen at zero
        assert model.get_input_embeddings().padding_idx is None


@pytest.mark.parametrize("backbone", ["gpt2", "llama"])
def test_matched_width_is_the_closest(backbone: str) -> None:
    shape = ModelShape(backbone=backbone, width=32, layers=3, heads=4)

    def count(width: int) -> int:
        resized = shape.model_copy(update={"width": width})
        return parameter_count(lambda: build_plain(resized, **SIZES))

    for target in (60_000, 123_456):
        width = match_width(shape, target, **SIZES).width
        candidates = range(8, 200, 8)
        assert width == min(candidates, key=lambda w: abs(count(w) - target))
    with pytest.raises(CocomixError, match="no width"):
        match_width(shape, 10, **SIZES)
