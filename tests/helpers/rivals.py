"""Small objectives with a second target, by name, and their losses by definition, one position at a time."""

import math
from collections.abc import Callable
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from cocomix.objectives.auxiliary import AuxiliaryObjective
from cocomix.objectives.heads import HEADS
from cocomix.objectives.mtp import MtpObjective
from cocomix.objectives.nextlat import NextLatObjective
from cocomix.objectives.nitp import NitpObjective
from cocomix.objectives.prefix import PrefixObjective
from cocomix.objectives.schedule import WeightSchedule
from cocomix.objectives.top import TopObjective

V, D = 50, 16
PREFIXES = [-100 if token % 3 == 0 else token // 3 for token in range(V)]


def student(family: str = "gpt2", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    if family == "llama":
        shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": D}
        return LlamaForCausalLM(LlamaConfig(**shape, vocab_size=V, intermediate_size=32, max_position_embeddings=16))
    sizes = {"vocab_size": V, "n_positions": 16, "n_embd": D, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))


def mtp(head: str, family: str = "gpt2", schedule: WeightSchedule | None = None) -> MtpObjective:
    model = student(family)
    return MtpObjective(model, [HEADS[head](model, family) for _ in range(2)], 0.7, 0.5, schedule)


def prefix(head: str, family: str = "gpt2", schedule: WeightSchedule | None = None) -> PrefixObjective:
    model = student(family)
    return PrefixObjective(model, HEADS[head](model, family), PREFIXES, 0.7, schedule)


Make = Callable[..., AuxiliaryObjective]
RIVALS: dict[str, Make] = {
    "mtp_block": lambda family="gpt2", schedule=None: mtp("block", family, schedule),
    "mtp_linear": lambda family="gpt2", schedule=None: mtp("linear", family, schedule),
    "mtp_shared": lambda family="gpt2", schedule=None: mtp("shared", family, schedule),
    "top": lambda family="gpt2", schedule=None: TopObjective(student(family), 0.7, 4, schedule),
    "nextlat": lambda family="gpt2", schedule=None: NextLatObjective(student(family), 0.7, 0.6, 2, schedule),
    "nitp": lambda family="gpt2", schedule=None: NitpObjective(student(family), 0.7, 0, schedule),
    "prefix_shared": lambda family="gpt2", schedule=None: prefix("shared", family, schedule),
    "prefix_block": lambda family="gpt2", schedule=None: prefix("block", family, schedule),
}


def cross_entropy(logits: torch.Tensor, target: int) -> torch.Tensor:
    return logits.exp().sum().log() - logits[target]


def mean(losses: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(losses).mean()


def next_token(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits = model(ids).logits
    return mean([cross_entropy(logits[b, t], ids[b, t + 1]) for b in range(len(ids)) for t in range(ids.shape[1] - 1)])


def second(name: str, objective: Any, ids: torch.Tensor) -> torch.Tensor:
    """The second loss by its definition."""
    model = objective.evaluated()
    states = model(ids, output_hidden_states=True).hidden_states
    places = [(b, t) for b in range(len(ids)) for t in range(ids.shape[1] - 1)]
    kind, _, head = name.partition("_")
    return {"mtp": _mtp, "prefix": _prefix, "top": _top, "nextlat": _nextlat, "nitp": _nitp}[kind](
        objective, ids, states, places, head
    )


def _read(head: Any, kind: str, states: Any, b: int) -> torch.Tensor:
    """The hidden states that a head gives the LM head, of row `b` alone."""
    if kind == "shared":
        return states[-1][b]
    if kind == "linear":
        return states[-1][b] + states[-1][b] @ head.proj.weight.T
    return head(tuple(one[b : b + 1] for one in states))[0]  # its blocks have twins of their own, tests/model


def _mtp(objective: Any, ids: Any, states: Any, places: Any, kind: str) -> torch.Tensor:
    unembedding = objective.evaluated().lm_head.weight
    loss = states[-1].new_zeros(())
    for number, head in enumerate(objective.heads):
        ahead = number + 2
        terms = [
            cross_entropy(unembedding @ _read(head, kind, states, b)[t], ids[b, t + ahead])
            for b, t in places
            if t + ahead < ids.shape[1]
        ]
        loss = loss + 0.5**number * mean(terms)
    return loss


def _prefix(objective: Any, ids: Any, states: Any, places: Any, kind: str) -> torch.Tensor:
    unembedding = objective.evaluated().lm_head.weight
    loss = states[-1].new_zeros(())
    for b, t in places:
        target = PREFIXES[ids[b, t + 1]]
        if target >= 0:
            loss = loss + cross_entropy(unembedding @ _read(objective.head[0], kind, states, b)[t], target)
    return loss / len(places)


def order(following: list[int], window: int) -> dict[int, float]:
    """ListNet's target of one position: softmax over the window minus the distance to each token's first place."""
    scores = {token: window - following.index(token) for token in following[:window]}
    total = sum(math.exp(score - window) for score in scores.values())
    return {token: math.exp(score - window) / total for token, score in scores.items()}


def _top(objective: Any, ids: Any, states: Any, places: Any, kind: str) -> torch.Tensor:
    terms = []
    for b, t in places:
        logits = objective.all.heads.weight @ states[-1][b, t]
        target = order(ids[b, t + 1 :].tolist(), 4)
        terms.append(sum(p * cross_entropy(logits, token) for token, p in target.items()))
    return mean(terms)


def _nextlat(objective: Any, ids: Any, states: Any, places: Any, kind: str) -> torch.Tensor:
    model, net = objective.evaluated(), objective.all.heads
    unembedding, embedding, hidden = model.lm_head.weight.detach(), model.get_input_embeddings().weight, states[-1]
    loss = hidden.new_zeros(())
    for steps in (1, 2):
        terms = []
        for b, t in places:
            if t + steps >= ids.shape[1]:
                continue
            g = hidden[b, t]
            for i in range(1, steps + 1):
                joined = torch.cat((g, embedding[ids[b, t + i]]))
                normed = (joined - joined.mean()) / (joined.var(unbiased=False) + 1e-5).sqrt()
                x = normed * net.norm.weight + net.norm.bias
                for place in (0, 2, 4):
                    x = net.mlp[place].weight @ x + net.mlp[place].bias
                    x = x if place == 4 else 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
                g = g + x
            goal = hidden[b, t + steps].detach()
            gap = (g - goal).abs()
            smooth = torch.where(gap < 1, 0.5 * gap**2, gap - 0.5).mean()
            p, q = (unembedding @ goal).softmax(-1), (unembedding @ g).softmax(-1)
            terms.append(smooth + 0.6 * (p * (p / q).log()).sum())
        loss = loss + mean(terms) / 2
    return loss


def _nitp(objective: Any, ids: Any, states: Any, places: Any, kind: str) -> torch.Tensor:
    net, terms = objective.all.heads, []
    for b, t in places:
        h, z = states[-1][b, t], states[1][b, t + 1].detach()
        gate = net.gate.weight @ h
        p = net.down.weight @ (gate * torch.sigmoid(gate) * (net.up.weight @ h))
        terms.append(1 - (p @ z) / (p.norm() * z.norm()))
    return mean(terms)
