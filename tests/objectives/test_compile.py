"""torch.compile changes no loss and no gradient beyond rounding, fused losses included."""

import shutil
from typing import Any

import pytest
import torch

from cocomix import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.data.special_tokens import SpecialTokens
from cocomix.model.build import ModelShape, build_plain
from cocomix.model.documents import mask_documents
from cocomix.objectives import CoCoMixObjective, NtpObjective, Objective

IDS = torch.randint(0, 60, (2, 12), generator=torch.Generator().manual_seed(1))
LABELS = torch.randint(0, 40, (2, 12, 3), generator=torch.Generator().manual_seed(2))


def student(**changes: Any) -> CoCoMixObjective:
    config = CoCoMixConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        concept_layer=1,
        num_concepts=40,
        concept_top_k=4,
        **changes,
    )
    return CoCoMixObjective(CoCoMixForCausalLM(config))


NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")


@NEEDS_COMPILER
@pytest.mark.long
@pytest.mark.parametrize("changes", [{}, {"mixer_options": {"slot": "residual"}, "vector_scale": 0.3}])
def test_a_compiled_training_step_agrees(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    objective = student(**changes).train()
    check_compiled(objective, {"input_ids": IDS, "concept_labels": LABELS})


@NEEDS_COMPILER
@pytest.mark.long
@pytest.mark.parametrize("kind", ["cocomix", "gpt2", "llama"])
def test_a_compiled_training_step_agrees_with_document_masks(kind: str) -> None:
    torch.manual_seed(0)
    ids = IDS.clone()
    ids[0, 3] = ids[0, 7] = ids[1, 5] = 0
    if kind == "cocomix":
        objective: Objective = student()
    else:
        shape = ModelShape(backbone=kind, width=16, layers=2, heads=2)
        objective = NtpObjective(build_plain(shape, vocab_size=60, seq_len=16))
    objective.train()
    batch = {"input_ids": ids, "concept_labels": LABELS}
    with torch.no_grad():
        crossing = objective(batch)
        mask_documents(objective.evaluated(), SpecialTokens(None, 0))  # pyright: ignore[reportArgumentType]
        loss = objective(batch)
    assert abs(loss - crossing) > 1e-4, "the masks do nothing"
    check_compiled(objective, batch)


def check_compiled(objective: Objective, batch: dict[str, torch.Tensor]) -> None:
    """Loss and gradients of the compiled objective are those of the eager one."""
    weights = [p for p in objective.parameters() if p.requires_grad]
    loss = objective(batch)
    expected = torch.autograd.grad(loss, weights, allow_unused=True)
    objective.compile()
    compiled = objective(batch)
    torch.testing.assert_close(compiled, loss, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(torch.autograd.grad(compiled, weights, allow_unused=True), expected, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
