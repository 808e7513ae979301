"""torch.compile changes no loss and no gradient beyond rounding, fused losses included."""

import shutil
from typing import Any

import pytest
import torch

from cocomix import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.objectives import CoCoMixObjective

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


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.long
@pytest.mark.parametrize("changes", [{}, {"mixer_options": {"slot": "residual"}, "vector_scale": 0.3}])
def test_a_compiled_training_step_agrees(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    objective = student(**changes).train()
    batch = {"input_ids": IDS, "concept_labels": LABELS}
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
