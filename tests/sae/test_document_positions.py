"""Positions left out under a teacher that reads windows document by document, against a slow loop over documents."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from cocomix.analysis.token_statistics import observe
from cocomix.data.shards import write_shards
from cocomix.data.special_tokens import SpecialTokens
from cocomix.labels.attribution import attribute_active
from cocomix.labels.labeller import ConceptLabeller
from cocomix.model.build import ModelShape, build_plain
from cocomix.model.documents import KEY, document_positions, mask_documents
from cocomix.model.teacher import hidden_at, next_token_losses, resumed_at
from cocomix.objectives import SaeObjective
from cocomix.sae import TopKSAE, spliced_losses
from cocomix.sae.positions import NOTHING, LeftOut
from tests.helpers.toy_runs import toy_run, write_texts

EOS, VOCAB, SEQ = 0, 30, 16
RULES = [LeftOut(1), LeftOut(3), LeftOut(0, 1.3), LeftOut(2, 1.2)]
BEHIND, AT = SpecialTokens(None, EOS), SpecialTokens(EOS, EOS)
IDS = torch.tensor(
    [
        [5, 6, 7, EOS, 8, EOS, EOS, 9, 4, 3, 2, 1, 11, 12, EOS, 13],
        [EOS, 6, 7, 3, 8, 21, 2, 9, 4, 3, EOS, 1, 11, 12, 5, EOS],
        [9, 6, 7, 3, 8, 21, 2, 9, 4, 3, 2, 1, 11, 12, 5, 8],
    ]
)


def pieces(row: list[int], at_eos: bool) -> list[slice]:
    """The documents of a row."""
    cuts = [place + (not at_eos) for place, token in enumerate(row) if token == EOS]
    edges = [0, *(cut for cut in cuts if 0 < cut < len(row)), len(row)]
    return [slice(begin, end) for begin, end in pairwise(edges)]


def kept_one_by_one(rule: LeftOut, hidden: torch.Tensor, ids: torch.Tensor, at_eos: bool) -> torch.Tensor:
    """The rule on every document as if it were a window of its own."""
    kept = torch.zeros(ids.shape, dtype=torch.bool)
    for row in range(len(ids)):
        for piece in pieces(ids[row].tolist(), at_eos):
            kept[row, piece] = rule.kept(hidden[row : row + 1, piece])[0]
    return kept


def made(special: SpecialTokens) -> GPT2LMHeadModel:
    """A teacher that masks documents, and whose first positions are sinks."""
    torch.manual_seed(0)
    model = build_plain(ModelShape(width=16, layers=3, heads=2), vocab_size=VOCAB, seq_len=SEQ + 1)
    assert isinstance(model, GPT2LMHeadModel)
    model = model.double().eval().requires_grad_(False)
    model.transformer.wpe.weight[0, 3] += 30.0
    mask_documents(model, special)
    return model


@pytest.fixture(scope="module", params=[BEHIND, AT], ids=["behind", "at"])
def special(request: pytest.FixtureRequest) -> SpecialTokens:
    return request.param


@pytest.fixture(scope="module")
def teacher(special: SpecialTokens) -> GPT2LMHeadModel:
    return made(special)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("padded", [False, True])
def test_the_rule_is_that_of_each_document_alone(rule: LeftOut, special: SpecialTokens, padded: bool) -> None:
    model, generator = made(special), torch.Generator().manual_seed(1)
    positions = document_positions(model, IDS)
    assert positions is not None and document_positions(model, IDS, torch.ones_like(IDS)) is None
    hidden = torch.randn(3, SEQ, 4, generator=generator) * torch.rand(3, SEQ, 1, generator=generator)
    lengths = torch.tensor([SEQ, 9, 5] if padded else [SEQ] * 3)
    padding = torch.arange(SEQ) >= lengths[:, None]
    hidden[padding] *= 1000
    expected = torch.zeros(3, SEQ, dtype=torch.bool)
    for row, length in enumerate(lengths.tolist()):
        one = slice(row, row + 1), slice(0, length)
        expected[one] = kept_one_by_one(rule, hidden[one], IDS[one], special is AT)
    kept = rule.kept(hidden, padding if padded else None, positions)
    assert torch.equal(kept & ~padding, expected)
    assert torch.equal(rule.select(hidden, padding if padded else None, positions), hidden[expected])
    if not padded:
        back = rule.keep(hidden, torch.zeros_like(hidden), positions)
        assert torch.equal(back, hidden.masked_fill(expected.unsqueeze(-1), 0))
        assert not torch.equal(rule.kept(hidden), kept)


@pytest.mark.parametrize("rule", RULES[1::2])
def test_training_figures_and_labels(rule: LeftOut, teacher: GPT2LMHeadModel, special: SpecialTokens) -> None:
    torch.manual_seed(0)
    hidden = hidden_at(teacher, IDS, 1)
    kept = kept_one_by_one(rule, hidden, IDS, special is AT)
    sae = TopKSAE(16, 24, 4).double()
    objective = SaeObjective(sae, teacher, layer=1, left_out=rule)
    objective.initialise(IDS)
    assert torch.allclose(sae.pre_bias, sae.preprocess(hidden[kept])[0].mean(0), atol=1e-9)
    sae.float()
    assert torch.equal(objective({"input_ids": IDS}), objective.training_module(hidden[kept].float()))
    sae.double()
    spliced = torch.where(kept.unsqueeze(-1), sae(hidden), hidden)
    with torch.no_grad(), resumed_at(teacher, 1, spliced):
        expected = next_token_losses(teacher(input_ids=IDS, use_cache=False).logits, IDS)[:, :-1].mean()
    measured = spliced_losses(teacher, sae, [IDS], layer=1, mean=torch.zeros(16), left_out=rule)
    assert measured["loss_sae"] == pytest.approx(float(expected), rel=1e-9)
    for name in ("exact", "activation"):
        every, some = (attribute_active(teacher, sae, IDS, layer=1, rule=name, left_out=r) for r in (NOTHING, rule))
        assert torch.equal(some.valid, every.valid & kept) and torch.equal(some.scores, every.scores)
    labeller = ConceptLabeller(
        teacher, sae, layer=1, rule="exact", signs=("absolute",), k=1, batch_size=3, left_out=rule
    )
    valid = labeller(IDS)["absolute"].valid
    assert not (valid & ~kept).any() and (valid & kept)[:2].any()


def test_names_are_of_positions_that_count(teacher: GPT2LMHeadModel, special: SpecialTokens, tmp_path: Path) -> None:
    rng, rule = np.random.default_rng(0), LeftOut(2)
    texts = [rng.integers(1, VOCAB, size) for size in (5, 9, 2, 17, 20, 3, 14)]
    shards = write_shards(tmp_path / "t", texts, vocab_size=VOCAB, eos_id=EOS, special=special)
    torch.manual_seed(1)
    model, sae = teacher.float(), TopKSAE(16, 24, 4)
    try:
        seen = observe(model, sae, shards, layer=1, seq_len=SEQ, tokens=10**6, left_out=rule)
        ids = torch.from_numpy(shards.windows(np.arange(shards.n_windows(SEQ)), SEQ))
        hidden = hidden_at(model, ids, 1)
        kept = kept_one_by_one(rule, hidden, ids, special is AT)
        if special is AT:
            kept &= kept_one_by_one(LeftOut(1), hidden, ids, True)
        latents = sae.encode(hidden[kept])
        assert int(seen.counts().sum()) == int((latents.values > 0).sum())
    finally:
        teacher.double()


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.mark.long
def test_a_run_whose_models_read_document_by_document(
    texts: Path, tmp_path: Path, no_waiting_for_the_disk: None
) -> None:
    run = toy_run(tmp_path / "run", texts, "context=document", "sae.skip_first=2", "sae.skip_norm=3")
    for stage in [*run.shared(), *(run.stages[f"{kind}/cocomix/seed0"] for kind in ("students", "evaluation"))]:
        run.do(stage, stage.name)
    model, left_out = run.teacher.model(), run.sae.left_out
    assert left_out == LeftOut(2, 3.0) and getattr(model.config, KEY)["at_eos"] is False
    eos = run.tokens.special.eos_id
    total = count = documents = 0
    for ids in run.sae.validation(8):
        hidden = hidden_at(model, ids, 0)
        for row, one in enumerate(ids.tolist()):
            cuts = [0, *(place + 1 for place, token in enumerate(one[:-1]) if token == eos), len(one)]
            documents += len(cuts) - 1
            count += sum(int(left_out.kept(hidden[row : row + 1, a:b]).sum()) for a, b in pairwise(cuts))
        total += ids.numel()
    figures = run.sae.figures
    assert figures["measured_tokens"] == count and figures["left_out_share"] == pytest.approx(1 - count / total)
    assert documents > 8, "no document begins inside a window"
    assert "the first 2 of the positions of each document" in (run.sae.folder / "quality.html").read_text()
    labels = run.stages["labels/exact"].figures["train"]["valid_share"]["helpful"]
    assert 0 < labels < count / total + 0.1
    evaluated = next(stage for stage in run.evaluations if stage.student.student == "cocomix").figures
    assert np.isfinite(evaluated["test"]["loss"]) and evaluated["recall"] is not None


def test_fingerprints_change_only_where_what_is_left_out_does(texts: Path, tmp_path: Path) -> None:
    def settings(*more: str) -> dict:
        return toy_run(tmp_path / "run", texts, *more).sae.settings()

    for more in ([], ["context=document"], ["sae.skip_first=2"]):
        assert "left_out_within" not in settings(*more)
    for more in (["sae.skip_first=2"], ["tokens.bos=true"], ["teacher.pretrained=gpt2", "teacher.train=null"]):
        assert settings("context=document", *more)["left_out_within"] == "document"
