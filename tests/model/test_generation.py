"""What `generate` promises: every output flag and way of decoding gives right values, every other choice is refused."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache, QuantizedCache, StaticCache

from cocomix.model import MIXERS, CoCoMixForCausalLM
from cocomix.utils.errors import CocomixError
from tests.model.test_cocomix_model import build, close, tokens

NEW = 5
CHANNELS = {"pause": {}, "hidden": {"target_size": 12}, "ncp": {"chunk": 3}}


def model_named(name: str) -> CoCoMixForCausalLM:
    """A tiny model with this mixer or channel."""
    if name in MIXERS:
        return build("llama", name, max_position_embeddings=40)
    return build(channel=name, channel_options=CHANNELS[name], num_concepts=1, concept_top_k=1)


@pytest.fixture(params=[*MIXERS, *CHANNELS])
def model(request: pytest.FixtureRequest) -> CoCoMixForCausalLM:
    return model_named(request.param)


def greedy(model: CoCoMixForCausalLM, ids: torch.Tensor | None = None, **settings: Any) -> Any:
    return model.generate(ids, max_new_tokens=NEW, do_sample=False, **settings)


def test_every_output_is_what_one_pass_over_the_text_gives(model: CoCoMixForCausalLM) -> None:
    ids = tokens(2, 6)
    flags = ("output_scores", "output_logits", "output_hidden_states", "output_attentions")
    output = greedy(model, ids, return_dict_in_generate=True, **dict.fromkeys(flags, True))
    whole = model(output.sequences[:, :-1], output_hidden_states=True, output_attentions=True)
    assert len(whole.attentions) == 4 and len(whole.hidden_states) == 5
    for step in range(NEW):
        expected = whole.logits[:, 5 + step]
        assert torch.allclose(output.logits[step], expected.float(), atol=1e-5)
        assert torch.equal(output.scores[step], output.logits[step])
        for states, all_states in zip(output.hidden_states[step], whole.hidden_states, strict=True):
            slots = all_states.shape[1] // whole.logits.shape[1]
            first = 0 if step == 0 or not model.channel.cacheable else (5 + step) * slots
            close(states, all_states[:, first : (6 + step) * slots])
        for weights, all_weights in zip(output.attentions[step], whole.attentions, strict=True):
            rows, columns = weights.shape[2:]
            end = all_weights.shape[2] * (6 + step) // whole.logits.shape[1]
            close(weights, all_weights[:, :, end - rows : end, :columns])
            assert not all_weights[:, :, end - rows : end, columns:].any()


def test_attention_weights_are_those_of_the_pass_without_them(model: CoCoMixForCausalLM) -> None:
    ids, mask = tokens(2, 6), torch.ones(2, 6, dtype=torch.long)
    mask[1, :2] = 0
    with_weights, without = (model(ids, attention_mask=mask, output_attentions=flag) for flag in (True, False))
    close(with_weights.logits[mask.bool()], without.logits[mask.bool()])
    for weights in with_weights.attentions:
        close(weights.sum(-1), torch.ones_like(weights.sum(-1)))
    assert without.attentions is None


def test_the_callers_cache_is_the_one_that_is_filled(model: CoCoMixForCausalLM) -> None:
    ids, cache = tokens(2, 6), DynamicCache(config=model.config)
    if not model.channel.cacheable:
        for call in (lambda: model(ids, past_key_values=cache), lambda: greedy(model, ids, past_key_values=cache)):
            with pytest.raises(CocomixError, match="leave past_key_values out"):
                call()
        return
    model(ids[:, :4], past_key_values=cache)
    assert cache.get_seq_length() == 4
    close(model(ids[:, 4:], past_key_values=cache).logits, model(ids).logits[:, 4:])
    first = model.generate(ids, max_new_tokens=2, do_sample=False, return_dict_in_generate=True)
    more = model.generate(first.sequences, max_new_tokens=3, do_sample=False, past_key_values=first.cache)
    assert torch.equal(more, greedy(model, ids))


@pytest.mark.parametrize("name", ["interleave", "every", "drop_tokens", "ncp"])
def test_other_ways_of_decoding_agree(name: str) -> None:
    model, ids = model_named(name), tokens(2, 6)
    expected = greedy(model, ids)
    assert torch.equal(greedy(model, ids, use_cache=False), expected)
    beams = [model.generate(ids, max_new_tokens=NEW, num_beams=3, use_cache=flag) for flag in (True, False)]
    assert torch.equal(*beams)
    assert model.generate(ids, max_new_tokens=NEW, do_sample=True, num_return_sequences=3).shape == (6, 6 + NEW)
    embeds = model.get_input_embeddings()(ids)
    alone: list[dict[str, Any]] = [{"prompt_lookup_num_tokens": 3}, {"assistant_early_exit": 2}]
    if not model.channel.cacheable:
        for settings in [*alone, {"prefill_chunk_size": 2}, {"inputs_embeds": embeds}]:
            with pytest.raises(CocomixError, match=f"leave {next(iter(settings))} out"):
                greedy(model, None if "inputs_embeds" in settings else ids[:1], **settings)
        return
    assert torch.equal(greedy(model, ids, prefill_chunk_size=2), expected)
    assert torch.equal(greedy(model, ids, cache_implementation="dynamic"), expected)
    assert torch.equal(greedy(model, inputs_embeds=embeds), expected[:, 6:])
    for settings in alone:
        assert torch.equal(greedy(model, ids[:1], **settings), expected[:1])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_embeddings_are_padded_ids(model: CoCoMixForCausalLM, side: str) -> None:
    ids, mask = tokens(2, 6), torch.ones(2, 6, dtype=torch.long)
    mask[1, slice(0, 2) if side == "left" else slice(4, 6)] = 0
    embeds = model.get_input_embeddings()(ids)
    close(model(inputs_embeds=embeds, attention_mask=mask).logits, model(ids, attention_mask=mask).logits)
    if model.channel.cacheable:
        continued = greedy(model, inputs_embeds=embeds, attention_mask=mask)
        assert torch.equal(continued, greedy(model, ids, attention_mask=mask)[:, 6:])


@pytest.mark.parametrize("kind", ["static", "offloaded_static", "quantized", "sliding_window", "offloaded"])
def test_other_caches_are_refused_in_a_sentence(kind: str) -> None:
    with pytest.raises(CocomixError, match="leave cache_implementation unset"):
        greedy(build(), tokens(1, 6), cache_implementation=kind)


def test_a_cache_of_another_kind_or_model_is_refused() -> None:
    model, ids = build(), tokens(1, 6)
    with pytest.raises(CocomixError, match="cannot use a StaticCache"):
        model(ids, past_key_values=StaticCache(model.config, max_cache_len=20))
    assert issubclass(QuantizedCache, DynamicCache) is False  # else `slot_cache` would have to tell them apart
    foreign = DynamicCache()
    for layer in range(4):
        foreign.update(torch.zeros(1, 4, 3, 4), torch.zeros(1, 4, 3, 4), layer)
    with pytest.raises(CocomixError, match="was not filled by a model of this shape"):
        model(ids, past_key_values=foreign)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"attention_mask": torch.ones(1, 1, 6, 6)}, r"\[1, 1, 6, 6\] where \[1, 6\] fits"),
        ({"attention_mask": torch.ones(1, 5)}, r"\[1, 5\] where \[1, 6\] fits"),
        ({"inputs_embeds": torch.zeros(1, 6, 16).double()}, "exactly one of them"),
        ({"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]])}, "give each text a row of its own"),
        ({"labels": tokens(1, 6), "logits_to_keep": 1}, "leave logits_to_keep or the labels out"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(CocomixError, match=words):
        build()(tokens(1, 6), **settings)


def test_few_logits_under_both_names() -> None:
    model, ids = build(), tokens(2, 6)
    for name in ("logits_to_keep", "num_logits_to_keep"):
        close(model(ids, **{name: 2}).logits, model(ids).logits[:, -2:])
