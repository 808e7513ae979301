"""A reading's numbers are those of direct calls of the model, in float64, and printing loses none of them."""

import math
from collections.abc import Sequence

import pytest
import torch
from rich.console import Console
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.analysis import Reading, print_reading, read_text
from cocomix.labels import ConceptLabels
from cocomix.utils.errors import CocomixError

VOCAB, C, K, POSITIONS, TOP = 37, 24, 5, 12, 4
IDS = [3, 1, 8, 30, 2, 2, 19]


def decode(ids: Sequence[int]) -> str:
    return "".join(f" [w{one}]" for one in ids)


def build(mixer: str = "interleave") -> CoCoMixForCausalLM:
    torch.manual_seed(0)
    config = CoCoMixConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=POSITIONS,
        mixer=mixer,
        concept_layer=1,
        num_concepts=C,
        concept_top_k=K,
        initializer_range=0.2,
    )
    return CoCoMixForCausalLM(config).double().eval()


def taught() -> ConceptLabels:
    """Labels of every second position."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.stack([torch.randperm(C, generator=generator)[:8] for _ in IDS])[None]
    return ConceptLabels(ids, torch.ones(ids.shape), torch.arange(len(IDS))[None] % 2 == 0)


def by_hand(model: CoCoMixForCausalLM, concept: int | None = None) -> tuple[list[list[float]], list[list[float]]]:
    """Concept logits and next-token probabilities; `concept` kept out of the vector by hand."""
    handle = None
    if concept is not None:

        def drop(_module, _inputs, logits):
            changed = logits.clone()
            changed[..., concept] = -1e9
            return changed

        handle = model.channel.head.proj.register_forward_hook(drop)
    with torch.no_grad():
        output = model(torch.tensor([IDS]))
    if handle is not None:
        handle.remove()
    odds = output.logits[0].exp() / output.logits[0].exp().sum(-1, keepdim=True)
    return output.concept_logits[0].tolist(), odds.tolist()


def test_numbers_are_those_of_the_model() -> None:
    model, labels = build(), taught()
    z, odds = by_hand(model)
    reading = read_text(model, IDS, decode, top=TOP, labels=labels, name=lambda c: f"name {c}" if c % 2 else None)
    assert reading.concept is None and reading.n_concepts == C and [one.id for one in reading.tokens] == IDS
    agreed = set()
    for place, one in enumerate(reading.tokens):
        ranking = sorted(range(C), key=lambda c: -z[place][c])
        assert [found.concept for found in one.concepts] == ranking[:TOP]
        for found in one.concepts:
            assert found.logit == pytest.approx(z[place][found.concept], rel=1e-9)
            assert found.strength == pytest.approx(found.logit / max(map(abs, z[place])), rel=1e-9)
            assert found.used and found.name == (f"name {found.concept}" if found.concept % 2 else None)
            truth = labels.ids[0, place].tolist()
            assert found.agreed == (None if place % 2 else found.concept in truth)
            agreed.add(found.agreed)
        assert [found.id for found in one.next] == sorted(range(VOCAB), key=lambda v: -odds[place][v])[:TOP]
        for found in one.next:
            assert found.probability == pytest.approx(odds[place][found.id], rel=1e-9) and found.without is None
            assert found.token == decode([found.id])
        if place == 0:
            assert one.loss is None
        else:
            assert one.loss == pytest.approx(-math.log(odds[place - 1][IDS[place]]), rel=1e-9)
        assert one.chosen is None and one.loss_without is None
    assert agreed == {None, True, False}


@pytest.mark.parametrize("mixer", ["interleave", "add"])
def test_the_odds_without_a_concept_are_those_of_a_model_that_never_mixes_it(mixer: str) -> None:
    model = build(mixer)
    z, odds = by_hand(model)
    concept = max(range(C), key=lambda c: z[-1][c])
    _, without = by_hand(model, concept)
    reading = read_text(model, IDS, decode, top=TOP, concept=concept, name=lambda _: "it")
    assert (reading.concept, reading.name) == (concept, "it")
    changed = 0.0
    for place, one in enumerate(reading.tokens):
        for found in one.next:
            assert found.probability == pytest.approx(odds[place][found.id], rel=1e-9)
            assert found.without == pytest.approx(without[place][found.id], rel=1e-9)
            changed = max(changed, abs(found.probability - found.without))
        if place:
            assert one.loss_without == pytest.approx(-math.log(without[place - 1][IDS[place]]), rel=1e-9)
        assert one.chosen is not None and one.chosen.logit == pytest.approx(z[place][concept], rel=1e-9)
        largest = sorted(range(C), key=lambda c: -z[place][c])[:K]
        assert one.chosen.used == (concept in largest)
    assert changed > 1e-4
    assert by_hand(model) == (z, odds)


def test_the_nats_of_the_channel_are_those_of_a_model_whose_vector_is_zero() -> None:
    model = build()
    reading = read_text(model, IDS, decode)
    mix = model.mixer.forward
    model.mixer.forward = lambda hidden, vector, blocks: mix(hidden, torch.zeros_like(hidden), blocks)
    _, odds = by_hand(model)
    del model.mixer.forward
    assert reading.tokens[0].channel is None
    for place, one in enumerate(reading.tokens[1:], 1):
        assert one.loss is not None and one.channel == pytest.approx(-math.log(odds[place - 1][IDS[place]]) - one.loss)
    assert "channel" in printed(reading) and all(
        f"{one.channel:+.2f}" in printed(reading) for one in reading.tokens[1:]
    )
    plain = read_text(build("none"), IDS, decode)
    assert all(one.channel is None for one in plain.tokens) and "channel" not in printed(plain)


def test_what_cannot_be_read_is_refused() -> None:
    model = build()
    plain = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_positions=20, n_embd=16, n_layer=1, n_head=2)).eval()
    for student, ids, concept, words in (
        (model, [], None, "the text is empty"),
        (model, [1] * (POSITIONS + 3), None, f"{POSITIONS + 3} tokens and the model {POSITIONS} positions"),
        (model, IDS, C, f"no concept {C}; the student's are 0 to {C - 1}"),
        (plain, IDS, 2, "predicts no concepts"),
        (build("none"), IDS, 2, "does not mix them in"),
    ):
        with pytest.raises(CocomixError, match=words):
            read_text(student, ids, decode, concept=concept)
    assert len(read_text(build("none"), IDS, decode).tokens) == len(IDS)
    assert len(read_text(model, IDS[:1], decode).tokens) == 1


def test_a_student_without_concepts_is_read_as_far_as_it_goes() -> None:
    torch.manual_seed(1)
    plain = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_positions=20, n_embd=16, n_layer=1, n_head=2)).double()
    odds = plain.eval()(torch.tensor([IDS])).logits[0].softmax(-1).tolist()
    reading = read_text(plain, IDS, decode, top=TOP)
    assert reading.n_concepts == 0
    for place, one in enumerate(reading.tokens):
        assert one.concepts == [] and one.chosen is None
        assert [found.id for found in one.next] == sorted(range(VOCAB), key=lambda v: -odds[place][v])[:TOP]
        if place:
            assert one.loss == pytest.approx(-math.log(odds[place - 1][IDS[place]]), rel=1e-9)


def printed(reading: Reading, **how: object) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"), **how)  # noqa: SIM115  # pyright: ignore
    print_reading(reading, console)
    return console.export_text(styles=bool(how))


def test_print_says_it_with_and_without_colour() -> None:
    concept = max(range(C), key=lambda c: by_hand(build())[0][-1][c])
    for chosen in (None, concept):
        reading = read_text(build(), IDS, decode, top=1, concept=chosen, labels=taught())
        plain = printed(reading)
        assert "\x1b" not in plain
        coloured = printed(reading, force_terminal=True, color_system="truecolor")
        assert ("48;2;" in coloured) == (chosen is not None)
        for one in reading.tokens:
            assert f"·[w{one.id}]" in plain and (one.loss is None or f"{one.loss:.2f}" in plain)
            if one.chosen is None:
                assert f"{one.concepts[0].concept} {one.concepts[0].strength:.2f}" in plain
            else:
                assert f"{one.chosen.strength:+.2f}" in plain
