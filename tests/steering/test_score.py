"""The steering score against a slow twin: own sampling loop, own steering, presence counted token by token."""

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.data import TokenShards, write_shards
from cocomix.experiments.config import SteeringConfig
from cocomix.experiments.steering_stage import SteeringStage
from cocomix.sae import TopKSAE
from cocomix.steering import Trial, choose_concepts, steering_score, strongest_places
from cocomix.utils.errors import CocomixError

VOCAB, C, T, LAYER = 70, 60, 16, 1
ASKED = {"concepts": 3, "prompts": 4, "prompt_tokens": 5, "new_tokens": 8, "strength": 4.0}


@cache
def models(n_concepts: int = C) -> tuple[CoCoMixForCausalLM, GPT2LMHeadModel, TopKSAE]:
    torch.manual_seed(0)
    shape = GPT2Config(vocab_size=VOCAB, n_positions=T, n_embd=16, n_layer=3, n_head=2, initializer_range=0.3)
    teacher = GPT2LMHeadModel(shape).double().eval()
    sae = TopKSAE(16, C, 3).double()
    torch.nn.init.constant_(sae.latent_bias, -1.6)  # some of the three are cut to 0
    config = CoCoMixConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=T,
        concept_layer=1,
        num_concepts=n_concepts,
        concept_top_k=3,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,  # must not end a text
        pad_token_id=0,
    )
    return CoCoMixForCausalLM(config).double().eval(), teacher, sae


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, VOCAB, 33) for _ in range(9)]
    return write_shards(tmp_path_factory.mktemp("shards") / "s", documents, vocab_size=VOCAB, eos_id=0)


def score(shards: TokenShards, seed: int = 3, watch: Callable[[Trial], None] | None = None, **changes: Any) -> dict:
    asked = {**ASKED, **changes}
    return steering_score(*models(), shards, layer=LAYER, seed=seed, seq_len=T, watch=watch, **asked)


@torch.no_grad()
def active_latents(text: list[int]) -> list[dict[int, float]]:
    """The SAE's positive latents at each token of one text, by id."""
    _, teacher, sae = models()
    hidden = teacher(torch.tensor([text]), output_hidden_states=True).hidden_states[LAYER + 1][0]
    return [{i: x for i, x in enumerate(sae.encode_dense(h).tolist()) if x > 0} for h in hidden]


@torch.no_grad()
def sampled(prompts: list[list[int]], new_tokens: int, seed: int, concept: int | None, strength: float) -> list:
    student = models()[0]

    def change(_module: Any, _inputs: Any, z: torch.Tensor) -> torch.Tensor:
        z = z.clone()
        for row in z.view(-1, C):
            if concept is not None:
                row[concept] = strength * max(abs(x) for x in row.tolist())
        return z

    handle = student.channel.head.proj.register_forward_hook(change)
    texts = torch.tensor(prompts)
    torch.manual_seed(seed)
    for _ in range(new_tokens):
        chances = student(texts, use_cache=False).logits[:, -1].float().softmax(-1)
        texts = torch.cat([texts, torch.multinomial(chances, 1)], 1)
    handle.remove()
    return texts.tolist()


@torch.no_grad()
def perplexity(texts: list[list[int]], start: int) -> float:
    losses = []
    for text in texts:
        logits = models()[1](torch.tensor([text])).logits[0]
        losses += [-F.log_softmax(logits[t - 1], -1)[text[t]].item() for t in range(start, len(text))]
    return math.exp(sum(losses) / len(losses))


def presence(texts: list[list[int]], concept: int, start: int) -> float:
    hits = [concept in active for text in texts for active in active_latents(text)[start:]]
    return sum(hits) / len(hits)


def starts(shards: TokenShards, wanted: int, length: int) -> list[list[int]]:
    n = shards.n_windows(T)
    return [shards.windows([round(i * (n - 1) / (wanted - 1))], T)[0, :length].tolist() for i in range(wanted)]


def test_score_equals_the_slow_twin(shards: TokenShards) -> None:
    models()
    trials: list[Trial] = []
    before = torch.get_rng_state()
    figures = score(shards, watch=trials.append)
    assert torch.equal(torch.get_rng_state(), before)

    concepts = [row["concept"] for row in figures["concepts"]]
    prompts = starts(shards, 4, 5)
    plain = sampled(prompts, 8, 3, None, 4.0)
    texts = [sampled(prompts, 8, 3, concept, 4.0) for concept in concepts]
    for trial, text in zip(trials, texts, strict=True):
        assert (trial.number, trial.total, trial.concept) == (trials.index(trial), 3, concepts[trial.number])
        assert trial.unsteered.tolist() == plain and trial.amplified.tolist() == text
        assert text != plain
    for i, row in enumerate(figures["concepts"]):
        assert row["amplified"] == pytest.approx(presence(texts[i], concepts[i], 5))
        assert row["unsteered"] == pytest.approx(presence(plain, concepts[i], 5))
        assert row["control"] == pytest.approx(presence(texts[(i + 1) % 3], concepts[i], 5))
    for name in ("amplified", "unsteered", "control"):
        assert figures[name] == pytest.approx(sum(row[name] for row in figures["concepts"]) / 3)
    assert sum(figures[name] for name in ("amplified", "unsteered", "control")) > 0
    every = [text for group in texts for text in group]
    assert figures["perplexity_amplified"] == pytest.approx(perplexity(every, 5), rel=1e-5)
    assert figures["perplexity_unsteered"] == pytest.approx(perplexity(plain, 5), rel=1e-5)


def test_all_texts_start_with_the_same_prompts_and_have_one_length(shards: TokenShards) -> None:
    trials: list[Trial] = []
    score(shards, watch=trials.append, new_tokens=11, strength=-4.0)
    for trial in trials:
        for texts in (trial.unsteered, trial.amplified):
            assert texts.shape == (4, 16) and texts[:, :5].tolist() == starts(shards, 4, 5)


def test_concepts_and_prompts_do_not_depend_on_the_seed(shards: TokenShards) -> None:
    runs: list[list[Trial]] = [[], []]
    ids = [
        [row["concept"] for row in score(shards, seed, runs[seed].append, strength=9.0 - seed)["concepts"]]
        for seed in (0, 1)
    ]
    assert ids[0] == ids[1]
    one, other = runs[0][0].unsteered, runs[1][0].unsteered
    assert torch.equal(one[:, :5], other[:, :5]) and not torch.equal(one[:, 5:], other[:, 5:])


def test_concepts_are_spread_over_the_ranking_by_frequency(shards: TokenShards) -> None:
    _, teacher, sae = models()
    counts, positions = [0] * C, 0
    for window in shards.windows(range(shards.n_windows(T)), T).tolist():
        for active in active_latents(window):
            positions += 1
            for concept in active:
                counts[concept] += 1
    ranking = sorted(range(C), key=lambda i: (-counts[i], i))
    ranking = [i for i in ranking if 0.002 * positions <= counts[i] <= 0.1 * positions]
    assert 6 < len(ranking) < C  # some are too rare or too frequent
    assert sum(counts) < 2.9 * positions
    given = {"layer": LAYER, "seq_len": T}
    assert choose_concepts(teacher, sae, shards, wanted=C, **given) == ranking
    last = len(ranking) - 1
    assert choose_concepts(teacher, sae, shards, wanted=5, **given) == [ranking[round(last * i / 4)] for i in range(5)]


def test_strongest_places_equal_a_search_of_all(shards: TokenShards) -> None:
    _, teacher, sae = models()
    windows = shards.windows(range(shards.n_windows(T)), T).tolist()
    latents = [active_latents(window) for window in windows]
    found = strongest_places(teacher, sae, shards, [7, 20, 33], layer=LAYER, seq_len=T, wanted=4)
    assert any(found.values())
    for concept, places in found.items():
        best = [max((active.get(concept, 0.0), -t) for t, active in enumerate(window)) for window in latents]
        order = sorted((i for i in range(len(windows)) if best[i][0] > 0), key=lambda i: -best[i][0])[:4]
        assert [(place.window, place.position) for place in places] == [(windows[i], -best[i][1]) for i in order]
        assert [place.activation for place in places] == pytest.approx([best[i][0] for i in order])


def test_what_cannot_be_scored_is_refused(shards: TokenShards) -> None:
    student, teacher, sae = models()
    with pytest.raises(CocomixError, match="at least 2 concepts"):
        score(shards, concepts=1)
    with pytest.raises(CocomixError, match="predicts no concepts"):
        steering_score(teacher, teacher, sae, shards, layer=LAYER, seed=0, seq_len=T, **ASKED)
    with pytest.raises(CocomixError, match="predicts 50 concepts and the SAE has 60 latents"):
        steering_score(models(50)[0], teacher, sae, shards, layer=LAYER, seed=0, seq_len=T, **ASKED)
    with pytest.raises(CocomixError, match="fewer tokens than one window of 5000"):
        steering_score(student, teacher, sae, shards, layer=LAYER, seed=0, seq_len=5000, **ASKED)
    everything = TopKSAE(16, C, C).double()
    torch.nn.init.constant_(everything.latent_bias, 100.0)  # every latent active everywhere
    with pytest.raises(CocomixError, match="0 of the SAE's 60 concepts"):
        steering_score(student, teacher, everything, shards, layer=LAYER, seed=0, seq_len=T, **ASKED)


class StudentStub:
    """What the steering stage asks of a student's stage, around the models above."""

    name, student, seed, labels, fingerprint, figures = "students/cocomix/seed3", "cocomix", 3, object(), "f", {}
    variant, run_config = SimpleNamespace(recall=True), SimpleNamespace(seq_len=T)
    outcome = staticmethod(lambda: "o")
    check = staticmethod(dict)

    def __init__(self, run_dir: Path, shards: TokenShards) -> None:
        student, teacher, sae = models()
        self.run_dir, self.model = run_dir, lambda: student
        words = SimpleNamespace(decode=lambda ids: " ".join(map(str, ids)))
        self.tokens = SimpleNamespace(shards={"val": shards}.__getitem__, tokenizer=lambda: words)
        self.sae = SimpleNamespace(
            name="sae",
            fingerprint="s",
            figures={},
            outcome=lambda: "o",
            check=dict,
            config=SimpleNamespace(layer=LAYER),
            model=lambda: sae,
            teacher=SimpleNamespace(model=lambda: teacher),
        )


def test_the_stage_keeps_the_score_and_texts_to_look_at(shards: TokenShards, tmp_path: Path) -> None:
    stub: Any = StudentStub(tmp_path, shards)
    stage = SteeringStage(stub, SteeringConfig(variant="cocomix", **ASKED))
    steps: list[tuple[int, int]] = []
    trials: list[Trial] = []
    figures = stage.run(lambda step, total, _metrics: steps.append((step, total)))
    assert figures == score(shards, watch=trials.append)
    assert steps == [(1, 3), (2, 3), (3, 3)] and stage.folder == tmp_path / "steering/cocomix/seed3"
    assert f"{figures['amplified']:.1%}" in stage.describe(figures)
    samples = json.loads((stage.folder / "samples.json").read_text())
    assert [sample["concept"] for sample in samples] == [trial.concept for trial in trials]
    for i, (sample, trial) in enumerate(zip(samples, trials, strict=True)):
        for name, text in (("unsteered", trial.unsteered[i]), ("amplified", trial.amplified[i])):
            assert f"{sample['prompt']} {sample[name]}" == " ".join(map(str, text.tolist()))
        best = sample["most_active"][0]
        assert best["token"] in best["context"].split() and len(best["context"].split()) <= 11
        assert best["activation"] == max(place["activation"] for place in sample["most_active"])


def test_only_what_changes_the_output_redoes_the_stage(shards: TokenShards, tmp_path: Path) -> None:
    stub: Any = StudentStub(tmp_path, shards)
    prints = {
        SteeringStage(stub, SteeringConfig(**{"variant": "cocomix", **ASKED, **change})).fingerprint
        for change in ({}, {"variant": "other"}, {"strength": 2.0}, {"prompts": 2}, {"new_tokens": 4})
    }
    assert len(prints) == 4
    stub.run_config = SimpleNamespace(seq_len=T + 1)
    assert SteeringStage(stub, SteeringConfig(variant="cocomix", **ASKED)).fingerprint not in prints


def test_a_stage_that_cannot_work_is_refused_before_anything_is_trained(shards: TokenShards, tmp_path: Path) -> None:
    stub: Any = StudentStub(tmp_path, shards)
    with pytest.raises(CocomixError, match="make 17 tokens, more than the 16 of seq_len"):
        SteeringStage(stub, SteeringConfig(variant="cocomix", **{**ASKED, "new_tokens": 12}))
    stub.labels = None
    with pytest.raises(CocomixError, match="not trained on the SAE's concepts"):
        SteeringStage(stub, SteeringConfig(variant="cocomix", **ASKED))
