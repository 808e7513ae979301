"""Time every fast path against the plain code it replaces, at the 69M shape.

    python -m benchmarks.speed.hot_spots -o results/bench       # about five minutes on 2 cores

The two variants of a pair take turns (`benchmarks.speed.measure`). A ratio is taken within a round; the figure is the
median of the rounds and the spread is the smallest and the largest. float32 on the CPU.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from transformers.activations import NewGELUActivation
from transformers.cache_utils import DynamicLayer

from benchmarks.provenance import provenance
from benchmarks.speed.measure import figure, ratios, time_interleaved
from benchmarks.speed.workload import Lap, Workload
from cocomix import CoCoMixConfig
from cocomix.kernels import largest, linear_losses, weighted_rows
from cocomix.kernels import matmul as few_rows
from cocomix.labels.exact import exact_attention, fused_exact_attention
from cocomix.model.cache import GrowingLayer
from cocomix.model.mixers import CONCEPTS
from cocomix.model.transformer import BlockRunner, GPT2Backbone
from cocomix.sae import TopKSAE
from cocomix.train.optimizer import BatchedMuon
from cocomix.utils.console import use_any_encoding
from cocomix.utils.files import write_json

N, D, V, C, K, K_ATTR = 2048, 512, 50257, 32768, 32, 4
TEACHER_D = 768
SEED = 0


class Variant(Workload):
    """One of the two variants of a computation."""

    unit, units, precision = "run", 1.0, "fp32"

    def __init__(self, name: str, function: Callable[[], Any]) -> None:
        self.name, self._function = name, function

    def prepare(self) -> None:
        pass

    def run(self, lap: Lap) -> None:
        self._function()


def weight(*shape: int) -> torch.Tensor:
    return (torch.randn(*shape) * 0.02).requires_grad_()


def backward(loss: torch.Tensor, *inputs: torch.Tensor) -> None:
    torch.autograd.grad(loss, inputs)


def lm_head() -> list[Variant]:
    """Next-token loss of 2048 positions over 50257 tokens, forward and backward."""
    x, w, y = torch.randn(N, D, requires_grad=True), weight(V, D), torch.randint(0, V, (N,))
    return [
        Variant("logits, cross entropy", lambda: backward(F.cross_entropy(F.linear(x, w), y), x, w)),
        Variant("linear_losses", lambda: backward(linear_losses(x, w, None, y[:, None]).total / N, x, w)),
    ]


def concept_head() -> list[Variant]:
    """Four cross entropies over 32768 concepts and the 32 largest logits of 2048 positions, forward and backward."""
    x, w, b = torch.randn(N, D, requires_grad=True), weight(C, D), weight(C)
    labels, into = torch.randint(0, C, (N, K_ATTR)), torch.randn(N, K)

    def plain() -> None:
        z = F.linear(x, w, b)
        loss = sum((F.cross_entropy(z, column) for column in labels.T), torch.zeros(()))
        backward(loss / K_ATTR + (z.topk(K).values * into).sum(), x, w, b)

    def fused() -> None:
        losses = linear_losses(x, w, b, labels, K)
        assert losses.values is not None
        backward(losses.total / (N * K_ATTR) + (losses.values * into).sum(), x, w, b)

    return [Variant("logits, K_attr cross entropies, topk", plain), Variant("linear_losses with TopK", fused)]


def mixing() -> list[Variant]:
    """The mixed-in vector from 32 active of 32768 concepts, forward and backward."""
    values, ids, w = torch.randn(N, K, requires_grad=True), torch.randint(0, C, (N, K)), weight(C, D)
    into = torch.randn(N, D)

    def dense() -> None:
        sparse = torch.zeros(N, C).scatter(-1, ids, values)
        backward((sparse @ w * into).sum(), values, w)

    return [
        Variant("dense product", dense),
        Variant("weighted_rows", lambda: backward((weighted_rows(values, ids, w) * into).sum(), values, w)),
    ]


def top_k() -> list[Variant]:
    """The 32 largest of 32768, 2048 times."""
    z = torch.randn(N, C)
    return [Variant("torch.topk", lambda: z.topk(K)), Variant("largest", lambda: largest(z, K))]


def last_block() -> list[Variant]:
    """The last upper block over 2 x 1024 slots, two windows, forward and backward."""
    config = CoCoMixConfig(num_hidden_layers=2, concept_layer=1, vocab_size=8)
    backbone = GPT2Backbone(config)
    hidden = torch.randn(2, 2048, D, requires_grad=True)

    def run(query_slots: slice | None) -> None:
        upper = BlockRunner([backbone.blocks[-1]], backbone, torch.arange(1024)[None], None, 0, None, None)
        out = upper.run(hidden, slots=2, query_slots=query_slots)
        backward((out if query_slots else out[:, CONCEPTS]).sum(), hidden, *backbone.blocks[-1].parameters())

    return [Variant("all slots", lambda: run(None)), Variant("slots that feed the head", lambda: run(CONCEPTS))]


def few_row_products(rows: int, out: int) -> list[Variant]:
    """One linear layer over a few rows, with weights read from memory as in generation."""
    copies = max(2, 200_000_000 // (4 * out * D))
    weights, x, turn = [torch.randn(out, D) for _ in range(copies)], torch.randn(rows, D), [0]

    def run(linear: Callable[..., torch.Tensor]) -> None:
        for _ in range(20):
            turn[0] = (turn[0] + 1) % copies
            linear(x, weights[turn[0]])

    return [Variant("F.linear", lambda: run(F.linear)), Variant("few_rows.linear", lambda: run(few_rows.linear))]


def cache() -> list[Variant]:
    """64 steps of one block's cache with two slots per token, after 960 tokens."""
    past, new = torch.randn(1, 8, 1920, 64), torch.randn(1, 8, 2, 64)

    def run(layer: DynamicLayer) -> None:
        layer.update(past, past)
        for _ in range(64):
            layer.update(new, new)

    return [
        Variant("concatenated", lambda: run(DynamicLayer())),
        Variant("grown in place", lambda: run(GrowingLayer())),
    ]


def two_stream_attention() -> list[Variant]:
    """Attention of the exact rule's second stream: two windows of 1024, 12 heads, forward and backward."""
    query, key, value = (torch.randn(2, 12, 1024, 64, requires_grad=True) for _ in range(3))
    others, into = (torch.randn(2, 12, 1024, 64), torch.randn(2, 12, 1024, 64)), torch.randn(2, 12, 1024, 64)

    def run(attention: Callable[..., torch.Tensor]) -> None:
        backward((attention(query, key, value, others, 0.125) * into).sum(), query, key, value)

    return [
        Variant("scores held whole", lambda: run(exact_attention)),
        Variant("fused", lambda: run(fused_exact_attention)),
    ]


def attribution_head() -> list[Variant]:
    """The teacher's next-token loss of 2048 positions and its gradient with respect to the hidden states only."""
    x, w, y = torch.randn(N, TEACHER_D, requires_grad=True), torch.randn(V, TEACHER_D) * 0.02, torch.randint(0, V, (N,))
    return [
        Variant("logits, cross entropy", lambda: backward(F.cross_entropy(F.linear(x, w), y), x)),
        Variant("linear_losses", lambda: backward(linear_losses(x, w, None, y[:, None]).total / N, x)),
    ]


def encoder() -> list[Variant]:
    """Encode 2048 hidden states with 32768 latents and decode them, with every gradient of the autoencoder."""
    sae, x = TopKSAE(TEACHER_D, C, K), torch.randn(N, TEACHER_D)

    def dense() -> None:
        normed, _, _ = sae.preprocess(x)
        top = sae.pre_activations(normed).topk(K)
        sparse = torch.zeros(N, C).scatter(-1, top.indices, F.relu(top.values))
        backward((sparse @ sae.decoder_weight + sae.pre_bias - normed).square().mean(), *sae.parameters())

    def fused() -> None:
        normed, _, _ = sae.preprocess(x)
        out = sae.combine(*sae.chosen(normed)) + sae.pre_bias
        backward((out - normed).square().mean(), *sae.parameters())

    return [Variant("dense", dense), Variant("chosen latents only", fused)]


def gelu() -> list[Variant]:
    """GPT-2's activation over `[2, 1024, 3072]`, forward and backward."""
    x, spelt = torch.randn(2, 1024, 3072, requires_grad=True), NewGELUActivation()
    return [
        Variant("spelt out", lambda: backward(spelt(x).sum(), x)),
        Variant("one operation", lambda: backward(F.gelu(x, approximate="tanh").sum(), x)),
    ]


def muon(width: int) -> list[Variant]:
    """An update of the matrices of two Llama blocks, torch's and ours.

    With ONEDNN_MAX_CPU_ISA=AVX2, torch multiplies as on a processor without bf16 instructions, and ours takes the dtype
    that it would take there.
    """
    shapes = [(width, width)] * 8 + [(4 * width, width)] * 4 + [(width, 4 * width)] * 2
    emulated = os.environ.get("ONEDNN_MAX_CPU_ISA") == "AVX2"
    options: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.95}

    def variant(name: str, kind: type[torch.optim.Muon], **more: Any) -> Variant:
        leaves = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
        optimizer = kind(leaves, **more, **options)
        for leaf in leaves:
            leaf.grad = torch.randn_like(leaf)
            optimizer.state[leaf]["momentum_buffer"] = torch.zeros_like(leaf)
        return Variant(name, optimizer.step)

    return [
        variant("torch", torch.optim.Muon, adjust_lr_fn="match_rms_adamw"),
        variant("matrices of a shape at once", BatchedMuon, dtype=torch.float32 if emulated else None),
    ]


SPOTS: dict[str, Callable[[], list[Variant]]] = {
    "lm_head_loss": lm_head,
    "concept_head_loss": concept_head,
    "mixing": mixing,
    "top_k": top_k,
    "last_block": last_block,
    **{
        f"linear_{rows}_row{'s' if rows > 1 else ''}_{out}": lambda rows=rows, out=out: few_row_products(rows, out)
        for rows in (1, 2, 8)
        for out in (2048, 32768)
    },
    "cache": cache,
    "two_stream_attention": two_stream_attention,
    "attribution_head": attribution_head,
    "autoencoder": encoder,
    "teacher_gelu": gelu,
    **{f"muon_{width}": lambda width=width: muon(width) for width in (64, 512)},
}


def main() -> None:
    """Parse the command line, measure, write `hot_spots.json` and print a Markdown table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.hot_spots",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the report")
    parser.add_argument("--rounds", type=int, default=7, help="rounds per pair")
    parser.add_argument("--only", nargs="+", choices=list(SPOTS), default=list(SPOTS), help="pairs; default: all")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {**provenance(), "seed": SEED, "rounds": arguments.rounds}
    report["spots"] = {}
    print("| | plain | s | ours | s | times faster | spread |\n| --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.only:
        torch.manual_seed(SEED)
        plain, ours = SPOTS[name]()
        timings = time_interleaved([plain, ours], arguments.rounds)
        before, after = (timings[variant.name].seconds for variant in (plain, ours))
        spot = figure(ratios(before, after), plain=plain.name, ours=ours.name, before=before, after=after)
        report["spots"][name] = spot
        low, high = spot["spread"]
        print(
            f"| {name} | {plain.name} | {median(before):.4f} | {ours.name} | {median(after):.4f}"
            f" | {spot['value']:.2f} | {low:.2f} to {high:.2f} |",
            flush=True,
        )
        write_json(arguments.out / "hot_spots.json", report)


if __name__ == "__main__":
    use_any_encoding()
    main()
