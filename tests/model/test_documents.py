"""Documents in a window against each of them alone: logits, losses and labels, in float64."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import BloomConfig, BloomForCausalLM, PreTrainedModel

from cocomix.data.special_tokens import SpecialTokens
from cocomix.labels.attribution import attribute_active
from cocomix.labels.labeller import ConceptLabeller
from cocomix.model import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.model.build import ModelShape, build_plain
from cocomix.model.documents import KEY, DocumentRule, document_rule, mask_documents
from cocomix.model.loading import load_causal_lm
from cocomix.model.mixers import MIXERS
from cocomix.objectives.heads import BlockHead
from cocomix.objectives.ntp import NtpObjective
from cocomix.sae import TopKSAE
from cocomix.utils.errors import CocomixError

EOS, VOCAB, SEQ = 0, 30, 16
BEHIND, AT = SpecialTokens(None, EOS), SpecialTokens(EOS, EOS)
IDS = torch.tensor(
    [
        [5, 6, 7, EOS, 8, EOS, EOS, 9, 4, 3, 2, 1, 11, 12, EOS, 13],
        [EOS, 6, 7, 3, 8, 21, 2, 9, 4, 3, EOS, 1, 11, 12, 5, EOS],
        [9, 6, 7, 3, 8, 21, 2, 9, 4, 3, 2, 1, 11, 12, 5, 8],
    ]
)


def pieces(row: list[int], special: SpecialTokens) -> list[tuple[int, int]]:
    """Begin and end of each document in a row."""
    begins = [0]
    for place in range(1, len(row)):
        if (row[place] if special is AT else row[place - 1]) == EOS:
            begins.append(place)
    return list(zip(begins, [*begins[1:], len(row)], strict=True))


def plain(backbone: str) -> PreTrainedModel:
    torch.manual_seed(0)
    shape = ModelShape(backbone=backbone, width=32, layers=3, heads=4)
    ids: Any = {"bos_token_id": EOS, "eos_token_id": EOS, "pad_token_id": EOS}
    model = build_plain(shape, vocab_size=VOCAB, seq_len=SEQ + 1, special=ids).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def mixed(mixer: str, backbone: str = "gpt2", channel: str = "concepts", **options: Any) -> CoCoMixForCausalLM:
    torch.manual_seed(0)
    config = CoCoMixConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=SEQ,
        backbone=backbone,
        concept_layer=2,
        num_concepts=12,
        concept_top_k=3,
        mixer=mixer,
        channel=channel,
        channel_options=options,
    )
    model = CoCoMixForCausalLM(config).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("special", [BEHIND, AT])
def test_documents_are_found(special: SpecialTokens) -> None:
    rule = DocumentRule(EOS, special is AT)
    positions, numbers = rule.positions(IDS), rule.numbers(IDS)
    for row, found, numbered in zip(IDS.tolist(), positions.tolist(), numbers.tolist(), strict=True):
        expected = pieces(row, special)
        assert found == [place for begin, end in expected for place in range(end - begin)]
        assert numbered == [number + 1 for number, (begin, end) in enumerate(expected) for _ in range(end - begin)]


def together_and_alone(model: Any, special: SpecialTokens, output: str = "logits") -> tuple[torch.Tensor, torch.Tensor]:
    """The output over windows by the masked model, and of each document by a copy that knows of none."""
    single = copy.deepcopy(model)
    mask_documents(model, special)
    alone = torch.zeros(0)
    with torch.no_grad():
        together = model(input_ids=IDS)[output]
        alone = torch.zeros_like(together)
        for number, row in enumerate(IDS):
            for begin, end in pieces(row.tolist(), special):
                alone[number, begin:end] = single(input_ids=row[None, begin:end], use_cache=False)[output][0]
        crossing = single(input_ids=IDS, use_cache=False)[output]
    assert (crossing[:2] - together[:2]).abs().max() > 1e-3 * together.std()
    return together, alone


@pytest.mark.parametrize("special", [BEHIND, AT])
@pytest.mark.parametrize("backbone", ["gpt2", "llama"])
def test_plain_models(backbone: str, special: SpecialTokens) -> None:
    model = plain(backbone)
    together, alone = together_and_alone(model, special)
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)
    objective = NtpObjective(model)
    assert objective._head[0] is not None, "the fused loss is not used any more"
    expected = F.cross_entropy(alone[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())  # targets are those of the stream
    with torch.no_grad():
        torch.testing.assert_close(objective({"input_ids": IDS}), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize(("backbone", "special"), [("gpt2", BEHIND), ("llama", AT)])
def test_students_with_concepts(mixer: str, backbone: str, special: SpecialTokens) -> None:
    model = mixed(mixer, backbone)
    together, alone = together_and_alone(model, special)
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)
    top = model.model.hidden_state(IDS, top=True)
    torch.testing.assert_close(model.lm_head(model.backbone.final_norm(top)), alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("channel", ["pause", "hidden", "mlp"])
def test_other_predictors(channel: str) -> None:
    options: Any = {"target_size": 8} if channel == "hidden" else {}
    together, alone = together_and_alone(mixed("interleave", channel=channel, **options), BEHIND)
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("special", [BEHIND, AT])
@pytest.mark.parametrize("backbone", ["gpt2", "llama"])
@pytest.mark.parametrize("rule", ["exact", "activation"])
def test_labels(rule: str, backbone: str, special: SpecialTokens) -> None:
    teacher = plain(backbone)
    single = copy.deepcopy(teacher)
    mask_documents(teacher, special)
    sae = TopKSAE(32, 24, 5).double()
    options: Any = {"layer": 0, "rule": rule}
    together = attribute_active(teacher, sae, IDS, **options)
    for number, row in enumerate(IDS):
        for begin, end in pieces(row.tolist(), special):
            # The token behind a document is its last one's target; as an input only itself sees it.
            alone = attribute_active(single, sae, row[None, begin : end + 1], **options)
            for field in ("ids", "values", "scores", "valid"):
                found = getattr(together, field)[number, begin:end]
                torch.testing.assert_close(found, getattr(alone, field)[0, : end - begin], rtol=1e-8, atol=1e-10)


def test_beginning_of_text_tokens_inside_windows_have_no_labels() -> None:
    teacher = plain("gpt2")
    labeller = ConceptLabeller(
        teacher, TopKSAE(32, 24, 5).double(), layer=0, rule="activation", signs=["helpful"], k=2, first_position=1
    )
    before = labeller(IDS)["helpful"].valid
    mask_documents(teacher, AT)
    after = labeller(IDS)["helpful"].valid
    begins = DocumentRule(EOS, True).begins(IDS)
    assert not after[begins].any() and before[begins].any() and after[~begins][:-1].any()


@pytest.mark.parametrize("backbone", ["gpt2", "llama"])
def test_heads_that_are_blocks(backbone: str) -> None:
    model = plain(backbone)
    head = BlockHead(model, backbone).double()
    mask_documents(model, BEHIND)
    with torch.no_grad():
        together = head(model(input_ids=IDS, output_hidden_states=True).hidden_states, IDS)
        for number, row in enumerate(IDS):
            for begin, end in pieces(row.tolist(), BEHIND):
                part = row[None, begin:end]
                alone = head(model(input_ids=part, output_hidden_states=True).hidden_states, part)
                torch.testing.assert_close(together[number, begin:end], alone[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("build", [lambda: plain("llama"), lambda: mixed("interleave")])
def test_a_saved_model_says_so_and_a_text_is_one_text(build: Any, tmp_path: Path) -> None:
    model: Any = build()
    model.save_pretrained(tmp_path / "before")
    assert KEY not in json.loads((tmp_path / "before/config.json").read_text())
    mask_documents(model, BEHIND)
    model.save_pretrained(tmp_path / "after")
    loaded: Any = load_causal_lm(tmp_path / "after", "the model").double()
    assert document_rule(loaded.config) == DocumentRule(EOS, False)
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits, rtol=1e-4, atol=1e-4)
        plainly: Any = load_causal_lm(tmp_path / "before", "the model").double()
        mask = torch.ones_like(IDS)
        text = model(input_ids=IDS, attention_mask=mask, use_cache=False).logits
        torch.testing.assert_close(text, plainly(input_ids=IDS, use_cache=False).logits, rtol=1e-4, atol=1e-4)
    prompt = IDS[:1, :6]
    options: Any = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    assert torch.equal(loaded.generate(prompt, **options), plainly.generate(prompt, **options))
    (tmp_path / "after/config.json").write_text(
        (tmp_path / "after/config.json").read_text().replace('"at_eos": false', '"at_eos": 3')
    )
    with pytest.raises(CocomixError, match="not a rule of documents"):
        load_causal_lm(tmp_path / "after", "the model")


def test_models_that_mix_documents_otherwise_are_refused() -> None:
    torch.manual_seed(0)
    bloom = BloomForCausalLM(BloomConfig(vocab_size=VOCAB, hidden_size=16, n_layer=2, n_head=2))
    for model in (bloom, mixed("interleave", channel="ncp")):
        with pytest.raises(CocomixError, match="set context=window or choose another model"):
            mask_documents(model, BEHIND)
