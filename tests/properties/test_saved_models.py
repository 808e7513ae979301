"""What is saved comes back with the same bits, dtype and settings, however it was built."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM

from cocomix.sae import TopKSAE
from cocomix.sae.sae import ACTIVATIONS, NORMALISATIONS
from tests.helpers.steered_models import close
from tests.helpers.strategies import (
    PARTS,
    by_token,
    for_every_part,
    lengths,
    on_each_backbone,
    seeds,
    student,
    students,
    tokens,
)

dtypes = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])
AS_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


def same_bits(mine: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Also of zeros with a sign, and of what is no number."""
    kind = AS_INTEGERS[mine.element_size()]
    return mine.dtype == theirs.dtype and torch.equal(mine.view(kind), theirs.view(kind))


def with_odd_numbers(module: nn.Module) -> None:
    """Puts what a text or a wider type would lose into each tensor."""
    for tensor in module.state_dict().values():
        limits, flat = torch.finfo(tensor.dtype), tensor.view(-1)
        odd = torch.tensor([-0.0, limits.tiny, limits.max, float("nan"), float("-inf")], dtype=tensor.dtype)
        flat[: len(odd)] = odd[: len(flat)]


def expect_same(found: nn.Module, expected: nn.Module) -> None:
    mine, theirs = found.state_dict(), expected.state_dict()
    assert set(mine) == set(theirs)
    for name, tensor in theirs.items():
        assert same_bits(mine[name], tensor), name


@on_each_backbone
@for_every_part
@settings(max_examples=3)
@given(st.data(), seeds, dtypes, lengths, st.sampled_from(["5GB", "4KB"]), st.booleans())
@torch.no_grad()
def test_students(
    part: str, backbone: str, data: Any, seed: int, dtype: torch.dtype, length: int, shard_size: str, odd: bool
) -> None:
    model = student(data.draw(students(**PARTS[part], backbone=backbone)), seed).to(dtype)
    if odd:
        with_odd_numbers(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, max_shard_size=shard_size)
        assert not list(Path(folder).glob("*.bin"))
        found = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    expect_same(found, model)
    assert type(found) is type(model)
    changed = {"_name_or_path", "dtype", "architectures", "transformers_version"}
    mine, theirs = (
        {name: value for name, value in one.config.to_dict().items() if name not in changed} for one in (found, model)
    )
    assert mine == theirs
    assert (found.lm_head.weight is found.get_input_embeddings().weight) == model.config.tie_word_embeddings
    if dtype == torch.float64 and not odd:  # sums depend, in their last bits, on where in memory weights lie
        ids = tokens(2, length, seed)
        for one, two in zip(by_token(found(ids)), by_token(model(ids)), strict=True):
            close(one, two)


@settings(max_examples=40)
@given(
    seeds,
    dtypes,
    st.integers(2, 12),
    st.integers(1, 24),
    st.data(),
    st.sampled_from(sorted(ACTIVATIONS)),
    st.sampled_from(sorted(NORMALISATIONS)),
    st.booleans(),
    st.booleans(),
)
@torch.no_grad()
def test_autoencoders(
    seed: int,
    dtype: torch.dtype,
    width: int,
    latents: int,
    data: Any,
    kind: str,
    normalisation: str,
    bias_input: bool,
    odd: bool,
) -> None:
    groups = data.draw(st.sampled_from([n for n in range(1, latents + 1) if latents % n == 0]), label="groups")
    options = {"groups": groups} if kind == "groupmax" else {}
    k = data.draw(st.integers(1, options.get("groups", latents)), label="k")
    torch.manual_seed(seed)
    activation = ACTIVATIONS[kind](latents, **options)
    sae = TopKSAE(width, latents, k, normalisation=normalisation, activation=activation, bias_input=bias_input)
    for tensor in sae.state_dict().values():
        tensor.normal_()
    sae = sae.to(dtype)
    if odd:
        with_odd_numbers(sae)
    with tempfile.TemporaryDirectory() as folder:
        sae.save_pretrained(folder, layer=2)
        found = TopKSAE.from_pretrained(folder)
    expect_same(found, sae)
    names = ("d_model", "n_latents", "k", "normalisation", "bias_input")
    assert [getattr(found, name) for name in names] == [getattr(sae, name) for name in names]
    assert type(found.activation) is type(activation) and found.activation.options() == options
    if dtype == torch.float64 and not odd:
        x = torch.randn(3, width, dtype=dtype)
        close(found(x), sae(x))
