"""Next-token training of plain models: the loss of Transformers, with every gradient, and no logits held whole."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig
from transformers.models.gemma2 import Gemma2Config

from cocomix.objectives.ntp import NtpObjective

SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "vocab_size": 60}
CONFIGS = {
    "gpt2": GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=60, n_positions=16),
    "gpt2 untied": GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=60, n_positions=16, tie_word_embeddings=False),
    "llama": LlamaConfig(**SMALL, intermediate_size=32, max_position_embeddings=16),
    "gemma2, softcapped": Gemma2Config(**SMALL, num_key_value_heads=1, intermediate_size=32, head_dim=8),
}


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("compiled", [False, True])
def test_it_is_the_library_s_own_loss(family: str, compiled: bool) -> None:
    if compiled and family != "gpt2":
        pytest.skip("one family is enough")
    torch.manual_seed(0)
    config = CONFIGS[family]
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        setattr(config, name, 0.0)
    model = AutoModelForCausalLM.from_config(config).double().train()
    ids = torch.randint(0, 60, (3, 9))
    objective = NtpObjective(model)
    assert model.training
    assert (objective._head[0] is None) == ("softcapped" in family)
    if compiled:
        objective.compile(backend="eager")
    mine = objective({"input_ids": ids})
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]  # the library's own loss is rounded to float32
    theirs = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    close = {"rtol": 1e-5, "atol": 1e-6} if objective._head[0] is None else {}
    torch.testing.assert_close(mine, theirs, check_dtype=False, **close)
    library = model(input_ids=ids, labels=ids, use_cache=False).loss
    torch.testing.assert_close(mine, library, check_dtype=False, rtol=1e-6, atol=0)
    weights = list(model.parameters())
    for a, b in zip(torch.autograd.grad(mine, weights), torch.autograd.grad(theirs, weights), strict=True):
        torch.testing.assert_close(a, b, **close)
    assert model(input_ids=ids).logits.shape[-1] == 60  # the head is itself again
