"""The steering of claim 9 against a slow twin: own sampling loop, own steering, presence counted token by token."""

import json
import math
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
from cocomix.analysis.token_statistics import StrongestPlaces
from cocomix.data import TokenShards, write_shards
from cocomix.experiments.config import SteeringConfig
from cocomix.experiments.steering_stage import SteeringStage
from cocomix.sae import TopKSAE
from cocomix.steering.study import choose_concepts, concept_activity
from cocomix.steering.study.concepts import derangement
from cocomix.utils.errors import CocomixError

VOCAB, C, T, LAYER, SEED = 70, 60, 16, 1, 3
REQUESTED = {"concepts": 3, "prompts": 4, "prompt_tokens": 5, "new_tokens": 8, "strength": 4.0}


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


class StudentStub:
    """What the steering stage needs of a student's stage, around the models above."""

    name, student, labels, fingerprint, figures = "students/cocomix/seed3", "cocomix", object(), "f", {}
    config = SimpleNamespace(uses_sae_concepts=True)
    outcome = staticmethod(lambda: "o")
    check = staticmethod(dict)
    upstream = staticmethod(list)

    def __init__(self, run_dir: Path, shards: TokenShards, seed: int = SEED, seq_len: int = T) -> None:
        student, teacher, sae = models()
        self.run_dir, self.folder, self.seed, self.model = run_dir, run_dir / self.name, seed, lambda: student
        self.run_config = SimpleNamespace(seq_len=seq_len)
        words = SimpleNamespace(decode=lambda ids: " ".join(map(str, ids)))
        splits = {"val": shards, "train": shards}
        self.tokens = SimpleNamespace(shards=splits.__getitem__, tokenizer=lambda: words)
        self.sae: Any = SimpleNamespace(
            name="sae",
            folder=run_dir / "sae",
            fingerprint="s",
            figures={},
            outcome=lambda: "o",
            check=dict,
            upstream=list,
            layer=LAYER,
            model=lambda: sae,
            teacher=SimpleNamespace(model=lambda: teacher, must_read_tokens=lambda why: None),
        )


def stage_of(stub: Any, **changes: Any) -> SteeringStage:
    return SteeringStage(stub, SteeringConfig(**{"variant": "cocomix", **REQUESTED, **changes}))


@torch.no_grad()
def active_latents(text: list[int]) -> list[dict[int, float]]:
    """The SAE's positive latents at each token of one text, by id."""
    _, teacher, sae = models()
    hidden = teacher(torch.tensor([text]), output_hidden_states=True).hidden_states[LAYER + 1][0]
    return [{i: x for i, x in enumerate(sae.encode_dense(h).tolist()) if x > 0} for h in hidden]


@torch.no_grad()
def sampled(prompt: list[int], row: int, new_tokens: int, seed: int, concept: int | None, strength: float) -> list[int]:
    """One row alone, the whole text every time."""
    student = models()[0]

    def change(_module: Any, _inputs: Any, z: torch.Tensor) -> torch.Tensor:
        z = z.clone()
        for logits in z.view(-1, C):
            if concept is not None:
                logits[concept] += strength * max(abs(x) for x in logits.tolist())
        return z

    handle = student.channel.head.proj.register_forward_hook(change)
    text = list(prompt)
    for step in range(new_tokens):
        chances = student(torch.tensor([text]), use_cache=False).logits[0, -1].softmax(-1)
        generator = np.random.default_rng((0, seed, 0, step))
        draws = generator.standard_exponential((row + 1, VOCAB), dtype=np.float32)[row]
        text.append(int((torch.from_numpy(draws).double() / chances).argmin()))
    handle.remove()
    return text


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


def starts(shards: TokenShards, count: int, length: int) -> list[list[int]]:
    n = shards.n_windows(T)
    return [shards.windows([round(i * (n - 1) / (count - 1))], T)[0, :length].tolist() for i in range(count)]


def test_the_figures_equal_the_slow_twin(shards: TokenShards, tmp_path: Path) -> None:
    stub: Any = StudentStub(tmp_path, shards)
    before = torch.get_rng_state()
    figures = stage_of(stub).run(lambda *_: None)
    assert torch.equal(torch.get_rng_state(), before)

    concepts = [row["concept"] for row in figures["concepts"]]
    prompts = starts(shards, 4, 5)
    rows = list(enumerate(prompts * 3))  # all prompts for the first concept, then all for the second
    plain = [sampled(prompt, row, 8, SEED, None, 4.0) for row, prompt in rows]
    texts = [
        [sampled(prompt, row, 8, SEED, concept, 4.0) for row, prompt in rows[4 * i : 4 * i + 4]]
        for i, concept in enumerate(concepts)
    ]
    assert all(group != plain[4 * i : 4 * i + 4] for i, group in enumerate(texts))
    order = derangement(3, torch.Generator().manual_seed(SEED * 1009))
    assert all(i != j for i, j in enumerate(order))
    for i, row in enumerate(figures["concepts"]):
        assert row["amplified"] == pytest.approx(presence(texts[i], concepts[i], 5), abs=1e-6)
        assert row["unsteered"] == pytest.approx(presence(plain, concepts[i], 5), abs=1e-6)
        assert row["control"] == pytest.approx(presence(texts[order[i]], concepts[i], 5), abs=1e-6)
    for name in ("amplified", "unsteered", "control"):
        assert figures[name] == pytest.approx(sum(row[name] for row in figures["concepts"]) / 3)
    assert sum(figures[name] for name in ("amplified", "unsteered", "control")) > 0
    every = [text for group in texts for text in group]
    assert figures["perplexity_amplified"] == pytest.approx(perplexity(every, 5), rel=1e-5)
    assert figures["perplexity_unsteered"] == pytest.approx(perplexity(plain, 5), rel=1e-5)


def test_all_texts_start_with_the_same_prompts_and_have_one_length(shards: TokenShards, tmp_path: Path) -> None:
    stub: Any = StudentStub(tmp_path, shards)
    context = stage_of(stub, new_tokens=11, strength=-4.0).context()
    texts = context.subject("student").unsteered
    assert texts.shape == (12, 16) and texts[:, :5].tolist() == starts(shards, 4, 5) * 3


def test_concepts_and_prompts_do_not_depend_on_the_seed(shards: TokenShards, tmp_path: Path) -> None:
    contexts = []
    for seed in (0, 1):
        stub: Any = StudentStub(tmp_path, shards, seed)
        contexts.append(stage_of(stub, strength=9.0 - seed).context())
    assert contexts[0].concepts == contexts[1].concepts
    first, second = (context.subject("student").unsteered for context in contexts)
    assert torch.equal(first[:, :5], second[:, :5]) and not torch.equal(first[:, 5:], second[:, 5:])


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
    activity = concept_activity(teacher, sae, shards, layer=LAYER, seq_len=T)
    assert [concept.concept for concept in choose_concepts(activity, C)] == ranking
    last = len(ranking) - 1
    chosen = [concept.concept for concept in choose_concepts(activity, 5)]
    assert chosen == [ranking[round(last * i / 4)] for i in range(5)]


def test_strongest_places_equal_a_search_of_all(shards: TokenShards) -> None:
    _, teacher, sae = models()
    windows = shards.windows(range(shards.n_windows(T)), T).tolist()
    latents = [active_latents(window) for window in windows]
    strongest = StrongestPlaces(4)
    concept_activity(teacher, sae, shards, layer=LAYER, seq_len=T, strongest=strongest)
    places, strengths = strongest.found()
    assert len(np.unique(places[0])) > 6
    for concept in range(C):
        best = [max((active.get(concept, 0.0), -t) for t, active in enumerate(window)) for window in latents]
        order = sorted((i for i in range(len(windows)) if best[i][0] > 0), key=lambda i: -best[i][0])[:4]
        here = places[0] == concept
        assert places[1:, here].T.tolist() == [[i, -best[i][1]] for i in order]
        assert strengths[here] == pytest.approx([best[i][0] for i in order])


def test_what_cannot_be_measured_is_refused(
    shards: TokenShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, teacher, sae = models()
    stub: Any = StudentStub(tmp_path, shards)

    def refused(words: str, seq_len: int = T) -> None:
        stub.run_config = SimpleNamespace(seq_len=seq_len)
        with pytest.raises(CocomixError, match=words):
            stage_of(stub).run(lambda *_: None)

    with pytest.raises(CocomixError, match="at least 2 concepts"):
        choose_concepts(concept_activity(teacher, sae, shards, layer=LAYER, seq_len=T), 1)
    refused("fewer tokens than one window of 5000", seq_len=5000)
    everything = TopKSAE(16, C, C).double()
    torch.nn.init.constant_(everything.latent_bias, 100.0)  # every latent active everywhere
    with monkeypatch.context() as patched:
        patched.setattr(stub.sae, "model", lambda: everything)
        refused("0 of the SAE's 60 concepts")
    stub.model = lambda: models(50)[0]
    refused("predicts 50 concepts and the SAE has 60 latents")
    stub.model = lambda: teacher
    refused("predicts no concepts")


def test_the_stage_keeps_the_figures_and_texts_to_look_at(shards: TokenShards, tmp_path: Path) -> None:
    stub: Any = StudentStub(tmp_path, shards)
    stage = stage_of(stub)
    steps: list[tuple[int, int]] = []
    figures = stage.run(lambda step, total, _metrics: steps.append((step, total)))
    assert steps == [(1, 1)] and stage.folder == tmp_path / "steering/cocomix/seed3"
    assert f"{figures['amplified']:.1%}" in stage.describe(figures)
    samples = json.loads((stage.folder / "samples.json").read_text())
    concepts = [row["concept"] for row in figures["concepts"]]
    assert [sample["concept"] for sample in samples] == concepts
    prompts = starts(shards, 4, 5)
    for i, (sample, concept) in enumerate(zip(samples, concepts, strict=True)):
        for name, steered in (("unsteered", None), ("amplified", concept)):
            text = sampled(prompts[i], 4 * i + i, 8, SEED, steered, 4.0)
            assert f"{sample['prompt']} {sample[name]}" == " ".join(map(str, text))
        best = sample["most_active"][0]
        assert best["token"] in best["context"].split() and len(best["context"].split()) <= 11
        assert best["activation"] == max(place["activation"] for place in sample["most_active"])


def test_only_what_changes_the_output_redoes_the_stage(shards: TokenShards, tmp_path: Path) -> None:
    stub: Any = StudentStub(tmp_path, shards)
    prints = {
        stage_of(stub, **change).fingerprint
        for change in ({}, {"variant": "other"}, {"strength": 2.0}, {"prompts": 2}, {"new_tokens": 4})
    }
    assert len(prints) == 4
    stub.run_config = SimpleNamespace(seq_len=T + 1)
    assert stage_of(stub).fingerprint not in prints


def test_a_stage_that_cannot_work_is_refused_before_anything_is_trained(shards: TokenShards, tmp_path: Path) -> None:
    stub: Any = StudentStub(tmp_path, shards)
    with pytest.raises(CocomixError, match="make 17 tokens, more than the 16 of seq_len"):
        stage_of(stub, new_tokens=12)
    stub.labels = None
    with pytest.raises(CocomixError, match="not trained on the SAE's concepts"):
        stage_of(stub)
