"""Which model families work as a teacher: each family that Transformers registers as a causal LM, tried at toy size.

    python -m benchmarks.teacher_families                     # all families; writes docs/reference/teachers.md
    python -m benchmarks.teacher_families llama gemma3 mamba  # these alone; prints, and writes nothing

A family's configuration is made from its class: two blocks (one more for each further kind of blocks), small widths by
the names that configurations have for them. Weights are random. A trial runs in a process of its own with a time limit:

1. `hidden_at`: the hidden states after block 0 are one vector a position, and later tokens do not change them.
2. `resumed_at`: a pass from these hidden states gives the model's own logits, and other hidden states give others.
3. the rule `reference` against the gradient through the model's own forward pass with a hook on block 0;
4. the rule `exact` against separate patched passes, one a position (its slow twin), or its refusal in one sentence.
"""

import argparse
import multiprocessing
import sys
import time
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import transformers
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from cocomix.labels import attribute
from cocomix.model import hidden_at
from cocomix.model.teacher import blocks, check_teacher, model_inputs
from cocomix.model.text_config import text_shape
from cocomix.sae import TopKSAE
from cocomix.utils.errors import CocomixError, reason

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "teachers.md"
WORKS, GENERAL, REFUSED, UNTRIED = "works", "without the exact rule", "refused", "not tried"
"""Outcomes: with all rules; with the rules reference and activation; not at all; no toy model could be made."""
BROKEN = "broken"
"""Outcome that must not be: a wrong label, or an error that is no sentence for the user."""
SECONDS = 90
"""Time limit of one family."""
VOCAB, WIDTH, HEADS, SEQ = 67, 32, 4, 10

SIZES: dict[str, Any] = {
    **dict.fromkeys(["vocab_size", "unpadded_vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input"], VOCAB),
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "dim_model", "embedding_size", "word_embed_proj_dim"], WIDTH),
    **dict.fromkeys(
        ["attention_hidden_size", "lru_width", "backbone_hidden_size", "cross_attention_hidden_size"], WIDTH
    ),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "dff"], 48),
    **dict.fromkeys(["ffn_hidden_size", "dim_ff", "expert_ffn_hidden_size", "moe_intermediate_size"], 48),
    **dict.fromkeys(["shared_intermediate_size", "shared_expert_intermediate_size", "intermediate_size_mlp"], 48),
    **dict.fromkeys(["shared_experts_intermediate_size", "dense_intermediate_size"], 48),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"], HEADS),
    **dict.fromkeys(["encoder_attention_heads", "swa_num_attention_heads"], HEADS),
    **dict.fromkeys(["num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"], 2),
    **dict.fromkeys(["head_dim", "swa_head_dim", "kv_channels", "attention_head_dim", "dim_head"], 8),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_target_positions"], 64),
    **dict.fromkeys(["sliding_window", "sliding_window_size", "attention_window_size", "attention_chunk_size"], 4),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"], 4),
    **dict.fromkeys(["num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"], 2),
    **dict.fromkeys(["n_group", "topk_group", "n_groups", "num_expert_group"], 1),
    **dict.fromkeys(["n_shared_experts", "num_shared_experts"], 1),
    **dict.fromkeys(["kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "v_head_dim", "index_head_dim"], 8),
    "qk_rope_head_dim": 4,
    "qk_head_dim": 12,
    **dict.fromkeys(["mamba_d_state", "state_size"], 8),
    **dict.fromkeys(["linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"], 8),
    **dict.fromkeys(["linear_num_key_heads", "linear_num_heads"], 2),
    "linear_num_value_heads": 4,
    "index_n_heads": 2,
    "index_topk": 4,
    "rotary_dim": 4,
    "num_nextn_predict_layers": 0,
    "first_k_dense_replace": 1,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 0,
    "query_pre_attn_scalar": 8,
    "image_size": 16,
    "patch_size": 8,
    **dict.fromkeys(["decoder_start_token_id", "forced_eos_token_id"], 2),
}
"""Values of a toy configuration, by the names that configurations have for them."""
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers")
KINDS = ("layer_types", "layers_block_type", "mlp_layer_types")
"""Attributes that list the kind of each block."""
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_chunk_size": 4, "mamba_expand": 2}
FAMILY: dict[str, dict[str, Any]] = {
    "bamba": MAMBA,
    "granitemoehybrid": MAMBA,
    "falcon_h1": MAMBA | {"mamba_d_ssm": 64},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 4},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 1, "chunk_size": 4},
    "dots3_note": {"num_key_value_heads": HEADS},
    "dots3_note_text": {"num_key_value_heads": HEADS},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 4},
    "reformer": {"axial_pos_embds": False, "hash_seed": 0},
    "xlm": {"emb_dim": WIDTH, "n_words": VOCAB, "vocab_size": VOCAB, "causal": True},
    "xlnet": {"d_inner": 48},
    "roc_bert": {
        "shape_vocab_size": VOCAB,
        "shape_embed_dim": 8,
        "pronunciation_vocab_size": VOCAB,
        "pronunciation_embed_dim": 8,
    },
    "longcat_flash": {"zero_expert_num": 2},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "lfm2_moe": {
        "layer_types": ["full_attention", "conv", "full_attention"],
        "num_dense_layers": 1,
        "num_hidden_layers": 3,
    },
    "zaya": {"num_experts_per_tok": 1},
    "zamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "attention_head_dim": 16},
    "zamba2": {"attention_head_dim": 16, "mamba_headdim": 8, "mamba_ngroups": 1, "chunk_size": 4},
    "xmod": {"default_language": "en_XX"},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
}
"""What a family needs beside `SIZES`."""


class Outcome(NamedTuple):
    """What became of a family."""

    status: str
    """`WORKS`, `GENERAL`, `REFUSED` or `UNTRIED`"""
    detail: str
    """why, if it does not work with all rules"""


def toy_config(family: str) -> Any:
    """A configuration of the model type `family`, a few blocks deep and a few numbers wide."""
    cls = CONFIG_MAPPING[family]
    return cls(**_toy_values(cls, FAMILY.get(family, {})))


def _toy_values(cls: Any, special: dict[str, Any]) -> dict[str, Any]:
    defaults = cls()
    known = vars(defaults) | dict.fromkeys(getattr(cls, "attribute_map", {}))
    values = {name: size for name, size in SIZES.items() if name in known}
    if "kv_lora_rank" in known:  # latent attention has as many keys as queries
        values |= {"num_key_value_heads": HEADS, "head_dim": SIZES["qk_rope_head_dim"]}
    distinct = {
        name: list(dict.fromkeys(known[name])) for name in KINDS if isinstance(known.get(name), list) and known[name]
    }
    depth = special.get("num_hidden_layers", 1 + max([1, *(len(kind) for kind in distinct.values())]))
    values |= {name: depth for name in DEPTHS if name in known}
    values |= {name: [kind[place % len(kind)] for place in range(depth)] for name, kind in distinct.items()}
    for name in getattr(cls, "sub_configs", None) or {}:
        if isinstance(known.get(name), PretrainedConfig) and name not in special:
            sub = type(known[name])
            values[name] = sub(**_toy_values(sub, FAMILY.get(sub.model_type, {})))
    values |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if "is_decoder" in known:
        values["is_decoder"] = True
    return values | special


MOST_NUMBERS = 8_000_000
"""Weights a toy model may have; with more, its configuration has a width by a name that `SIZES` lacks."""


def toy_model(family: str) -> PreTrainedModel:
    """A model of `family` with random weights that are large enough for attributions to be numbers, not noise.

    Raises:
        ValueError: it would have more than `MOST_NUMBERS` weights.
    """
    config = toy_config(family)
    config._experts_implementation = "eager"  # the fused one has no float64
    with torch.device("meta"):
        numbers = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    if numbers > MOST_NUMBERS:
        raise ValueError(f"its toy configuration has {numbers:,} weights")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.25)
    model.tie_weights()
    return model


def toy_sae(width: int) -> TopKSAE:
    """A random autoencoder."""
    torch.manual_seed(1)
    sae = TopKSAE(width, 40, 5).double()
    torch.nn.init.normal_(sae.pre_bias, std=0.1)
    torch.nn.init.normal_(sae.latent_bias, std=0.1)
    return sae


def toy_tokens() -> torch.Tensor:
    """Two texts, int64 `[2, SEQ]`."""
    return torch.randint(3, VOCAB - 3, (2, SEQ), generator=torch.Generator().manual_seed(2))


def reference_twin(model: PreTrainedModel, sae: TopKSAE, ids: torch.Tensor) -> torch.Tensor:
    """The rule `reference`, slowly: the gradient through the model's own pass, `[batch, seq, C]`."""
    caught: list[torch.Tensor] = []

    def leaf(_module: Any, _inputs: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple | list) else output).detach().requires_grad_()
        caught.append(hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple | list) else hidden

    handle = blocks(model)[0].register_forward_hook(leaf)
    try:
        logits = model(**model_inputs(model, ids, None)).logits
    finally:
        handle.remove()
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    (gradient,) = torch.autograd.grad(loss, caught[0])
    return sae.encode_dense(caught[0]).detach() * (gradient @ sae.decoder_weight.T)


def exact_twin(model: PreTrainedModel, sae: TopKSAE, ids: torch.Tensor) -> torch.Tensor:
    """The rule `exact`, slowly: for each position a pass with its hidden state alone replaced, `[batch, seq, C]`."""
    hidden = hidden_at(model, ids, 0).detach()
    out = torch.zeros(*ids.shape, sae.n_latents, dtype=hidden.dtype)
    for t in range(ids.shape[1] - 1):
        c = sae.encode_dense(hidden).detach()[:, t].requires_grad_()
        _, mean, std = sae.preprocess(hidden[:, t])
        patch = (c @ sae.decoder_weight + sae.pre_bias) * std + mean
        patched = torch.cat([hidden[:, :t], patch[:, None], hidden[:, t + 1 :]], dim=1)

        def replace(_module: Any, _inputs: Any, output: Any, patched: torch.Tensor = patched) -> Any:
            return (patched, *output[1:]) if isinstance(output, tuple | list) else patched

        handle = blocks(model)[0].register_forward_hook(replace)
        logits = model(**model_inputs(model, ids, None)).logits
        handle.remove()
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits[:, t], ids[:, t + 1], reduction="sum"), c)
        out[:, t] = (c * gradient).detach()
    return out


def trial(family: str) -> Outcome:
    """Try a family in this process: in float64, or in float32 if its code has parts that do not take float64."""
    try:
        with torch.no_grad():
            model = toy_model(family)
            model(**model_inputs(model, toy_tokens(), None))
    except Exception as error:
        return Outcome(UNTRIED, f"no toy model: {' '.join(str(error).split())[:160]}")
    outcome = _trial(
        toy_model(family).double(), 1e-4
    )  # some families compute their softmax in float32 whatever the model's dtype
    return outcome if outcome.status != REFUSED else _trial(toy_model(family).float(), 1e-2)


def _trial(model: PreTrainedModel, tolerance: float) -> Outcome:
    ids, exact = toy_tokens(), None
    try:
        check_teacher(model)
        sae = toy_sae(text_shape(model.config).hidden_size).to(model.dtype)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        reference = attribute(model, sae, ids, layer=0, rule="reference")
    except CocomixError as error:
        return Outcome(REFUSED, str(error))
    try:
        exact = attribute(model, sae, ids, layer=0, rule="exact")
    except CocomixError as error:
        why = str(error)
    _check(reference, reference_twin(model, sae, ids), tolerance)
    if exact is None:
        return Outcome(GENERAL, why)
    _check(exact, exact_twin(model, sae, ids), tolerance)
    return Outcome(WORKS, "")


def _check(fast: torch.Tensor, slow: torch.Tensor, tolerance: float) -> None:
    """Compare an attribution with its slow twin.

    Raises:
        AssertionError: they differ, or there is nothing to compare.
    """
    error, largest = float((fast - slow).detach().abs().max()), float(slow.detach().abs().max())
    assert largest > 0 and error <= tolerance * largest, f"{error:.3g} of {largest:.3g} from its slow twin"


def _child(family: str, answer: Connection) -> None:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    try:
        outcome = trial(family)
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        outcome = Outcome(
            REFUSED,
            f"TRACEBACK {type(error).__name__}: {reason(error)[:160]} ({Path(last.filename).name}:{last.lineno})",
        )
    answer.send(outcome)


def trial_apart(family: str, seconds: float = SECONDS) -> Outcome:
    """Try a family in a process of its own, which is stopped after `seconds`."""
    fork = multiprocessing.get_context("fork")
    receive, send = fork.Pipe(duplex=False)
    process = fork.Process(target=_child, args=(family, send))
    process.start()
    send.close()
    try:
        if receive.poll(seconds):
            return receive.recv()
        return Outcome(UNTRIED, f"no answer within {seconds:g} s")
    except EOFError:
        return Outcome(UNTRIED, "its process ended without an answer")
    finally:
        process.kill()
        process.join()


HEAD = f"""# Families that work as a teacher

Written by `python -m benchmarks.teacher_families`: each of the {{count}} model types that Transformers {{version}}
registers as a causal language model, tried at toy size with random weights.

- *{WORKS}*: hidden states, the rules `reference`, `activation` and `exact`; each was compared with a slow twin.
- *{GENERAL}*: `reference` and `activation` are right, and `exact` is refused in one sentence.
- *{REFUSED}*: a sentence says so before anything is computed.
- *{UNTRIED}*: no toy model could be made, so nothing is known.

A multimodal model is tried on text alone, and BERT and its kind with `is_decoder` set, without which they see later
tokens and are refused.

"""


def page(outcomes: dict[str, Outcome]) -> str:
    """The page with all outcomes, as Markdown."""
    groups = {
        status: sorted(family for family, outcome in outcomes.items() if outcome.status == status)
        for status in (WORKS, GENERAL, REFUSED, UNTRIED, BROKEN)
    }
    text = HEAD.format(count=len(outcomes), version=transformers.__version__)
    text += "| outcome | families |\n|---|---|\n"
    text += "".join(f"| {status} | {len(families)} |\n" for status, families in groups.items() if families)
    text += f"\n## {WORKS.capitalize()}\n\n" + ", ".join(f"`{family}`" for family in groups[WORKS]) + "\n"
    for status, families in groups.items():
        if families and status != WORKS:
            text += f"\n## {status.capitalize()}\n\n| family | reason |\n|---|---|\n"
            text += "".join(f"| `{family}` | {outcomes[family].detail.replace('|', '/')} |\n" for family in families)
    return text


def main() -> int:
    """Try families; returns the exit code, 1 if one is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="model types; none: all")
    requested = parser.parse_args().families
    outcomes = {}
    for family in requested or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        started = time.monotonic()
        outcomes[family] = outcome = trial_apart(family)
        print(f"{family:28} {outcome.status:24} {time.monotonic() - started:5.1f}s {outcome.detail}", flush=True)
    if not requested:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(outcomes), encoding="utf-8")
    return int(any(outcome.status == BROKEN for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
