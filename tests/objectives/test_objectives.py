"""Objectives: the loss is the formula's, and gradients reach what they should and nothing else."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.model import hidden_at
from cocomix.objectives import (
    BootstrapObjective,
    CoCoMixObjective,
    HiddenObjective,
    KdObjective,
    LiveTeacher,
    NtpObjective,
    SaeObjective,
    StoredTeacher,
)
from cocomix.sae import TopKSAE

IDS = torch.randint(0, 30, (2, 7), generator=torch.Generator().manual_seed(0))


def teacher() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=30, n_positions=8, n_embd=8, n_layer=3, n_head=2, initializer_range=0.3)
    return GPT2LMHeadModel(config).double().eval()


def student() -> CoCoMixForCausalLM:
    torch.manual_seed(1)
    config = CoCoMixConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=8,
        concept_layer=1,
        num_concepts=10,
        concept_top_k=2,
        concept_loss_weight=0.3,
        initializer_range=0.3,
    )
    return CoCoMixForCausalLM(config).double()


def test_ntp_loss() -> None:
    model = teacher()
    logits = model(IDS).logits
    slow = -sum(F.log_softmax(logits[b, t], -1)[IDS[b, t + 1]] for b in range(2) for t in range(6)) / 12
    assert abs(NtpObjective(model)({"input_ids": IDS}).item() - slow.item()) < 1e-6  # Transformers sums in float32


def test_cocomix_loss_and_where_its_parts_reach() -> None:
    model = student()
    labels = torch.randint(0, 10, (2, 7, 2), generator=torch.Generator().manual_seed(2))
    labels[0, 3] = -100
    loss = CoCoMixObjective(model)({"input_ids": IDS, "concept_labels": labels})
    output = model(IDS)
    named = [
        -F.log_softmax(output.concept_logits[b, t], -1)[labels[b, t, i]]
        for b in range(2)
        for t in range(7)
        for i in range(2)
        if labels[b, t, i] >= 0
    ]
    lm = -sum(F.log_softmax(output.logits[b, t], -1)[IDS[b, t + 1]] for b in range(2) for t in range(6)) / 12
    assert abs(loss.item() - (lm + 0.3 * sum(named) / len(named)).item()) < 1e-12
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    model.zero_grad()
    model(IDS, concept_labels=labels).concept_loss.backward()
    for name, parameter in model.named_parameters():
        above = name.startswith(("backbone.blocks.1", "backbone.blocks.2", "backbone.final_norm", "channel.vector"))
        assert above == (parameter.grad is None or not parameter.grad.any()), name


def test_sae_objective_leaves_the_teacher_alone(tmp_path: Path) -> None:
    model, sae = teacher(), TopKSAE(8, 20, 3).double()
    objective = SaeObjective(sae, model, layer=1)
    objective.initialise(IDS)
    normed = sae.preprocess(hidden_at(model, IDS, 1).flatten(0, 1))[0]
    assert torch.allclose(sae.pre_bias, normed.mean(0))
    sae.float()
    objective({"input_ids": IDS}).backward()
    objective.before_step()
    assert (sae.decoder_weight.grad * sae.decoder_weight).sum(-1).abs().max() < 1e-5
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {id(p) for p in objective.parameters()} == {id(p) for p in sae.parameters()}
    objective.save(tmp_path)
    assert torch.equal(TopKSAE.from_pretrained(tmp_path).encoder_weight, sae.encoder_weight)


def mixed(channel: str, **changes) -> CoCoMixForCausalLM:
    torch.manual_seed(1)
    shape = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "concept_layer": 1}
    sizes = {"max_position_embeddings": 8, "num_concepts": 10, "concept_top_k": 2, "initializer_range": 0.3}
    return CoCoMixForCausalLM(CoCoMixConfig(**shape, **sizes, channel=channel, **changes)).double()


def next_token_loss(logits: torch.Tensor) -> torch.Tensor:
    return -sum(F.log_softmax(logits[b, t], -1)[IDS[b, t + 1]] for b in range(2) for t in range(6)) / 12


def no_gradient(*modules: torch.nn.Module) -> bool:
    return all(parameter.grad is None for module in modules for parameter in module.parameters())


def test_distillation_from_a_live_teacher() -> None:
    torch.manual_seed(3)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_positions=8, n_embd=8, n_layer=1, n_head=2)).double().eval()
    source = teacher()
    objective = KdObjective(model, LiveTeacher(source), 0.4)
    loss = objective({"input_ids": IDS})
    ours, theirs = model(IDS).logits, source(IDS).logits
    divergence = 0.0
    for b in range(2):
        for t in range(6):
            p, q = theirs[b, t].softmax(-1), ours[b, t].softmax(-1)
            divergence += sum(p[v] * (p[v].log() - q[v].log()) for v in range(30)) / 12
    assert abs(loss.item() - (next_token_loss(ours) + 0.4 * divergence).item()) < 1e-12
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters()) and no_gradient(source)
    assert {id(p) for p in objective.parameters()} == {id(p) for p in model.parameters()}


def test_distillation_from_stored_logits_is_the_divergence_of_what_is_named_and_the_rest() -> None:
    torch.manual_seed(3)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_positions=8, n_embd=8, n_layer=1, n_head=2)).double().eval()
    log_probs = teacher()(IDS).logits.log_softmax(-1).detach()
    for k in (4, 30):
        top = log_probs.topk(k, dim=-1)
        batch = {"input_ids": IDS, "teacher_ids": top.indices, "teacher_log_probs": top.values}
        loss = KdObjective(model, StoredTeacher(), 0.4)(batch)
        ours, divergence = model(IDS).logits, 0.0
        for b in range(2):
            for t in range(6):
                p, q = log_probs[b, t].exp(), ours[b, t].softmax(-1)
                named = top.indices[b, t]
                divergence += sum(p[v] * (p[v].log() - q[v].log()) for v in named) / 12
                if k < 30:
                    rest, our_rest = 1 - p[named].sum(), 1 - q[named].sum()
                    divergence += rest * (rest.log() - our_rest.log()) / 12
        assert abs(loss.item() - (next_token_loss(ours) + 0.4 * divergence).item()) < 1e-12
    live = KdObjective(model, LiveTeacher(teacher()), 0.4)({"input_ids": IDS})
    assert abs(loss.item() - live.item()) < 1e-12  # all tokens named: the whole divergence
    loss.backward()
    assert not log_probs.requires_grad and all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("distance", ["l1", "l2", "cosine"])
def test_hidden_state_regression(distance: str) -> None:
    source, model = teacher(), mixed("hidden", channel_options={"target_size": 8})
    objective = HiddenObjective(model, source, layer=1, distance=distance, weight=0.6)
    loss = objective({"input_ids": IDS})
    hidden, output = source(IDS, output_hidden_states=True).hidden_states[2], model(IDS)
    terms = []
    for b in range(2):
        for t in range(7):
            x, guess = hidden[b, t], output.predicted_hidden[b, t]
            target = (x - x.mean()) / (x.std(unbiased=True) + 1e-5)
            terms.append(
                {
                    "l1": (guess - target).abs().sum() / 8,
                    "l2": ((guess - target) ** 2).sum() / 8,
                    "cosine": 1 - (guess @ target) / (guess.norm() * target.norm()),
                }[distance]
            )
    assert abs(loss.item() - (next_token_loss(output.logits) + 0.6 * sum(terms) / len(terms)).item()) < 1e-12
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    assert no_gradient(source)
    model.zero_grad(set_to_none=True)
    objective.distance(model(IDS).predicted_hidden, hidden.detach()).backward()
    for name, parameter in model.named_parameters():
        above = name.startswith(("backbone.blocks.1", "backbone.blocks.2", "backbone.final_norm", "channel.back"))
        assert above == (parameter.grad is None or not parameter.grad.any()), name


def test_pause_and_mixing_alone_are_next_token_prediction() -> None:
    for model in (mixed("pause"), mixed("concepts", concept_loss_weight=0.0)):
        loss = NtpObjective(model)({"input_ids": IDS})
        assert abs(loss.item() - next_token_loss(model(IDS).logits).item()) < 1e-12
        loss.backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_next_concept_prediction_adds_the_channels_own_loss() -> None:
    options = {"chunk": 2, "segments": 2, "codes": 3}
    model = mixed("ncp", mixer="add", channel_options=options).train()
    loss = NtpObjective(model)({"input_ids": IDS})
    output = model(IDS)
    assert output.channel_loss > 0  # its formula: tests/model/test_mixings.py
    assert abs(loss.item() - (next_token_loss(output.logits) + output.channel_loss).item()) < 1e-12
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_concept_loss_alone_shapes_what_lies_below_it() -> None:
    model = mixed("concepts", mixer="none", concept_loss_weight=0.3)
    labels = torch.randint(0, 10, (2, 7, 2), generator=torch.Generator().manual_seed(2))
    loss = CoCoMixObjective(model)({"input_ids": IDS, "concept_labels": labels})
    output = model(IDS)
    named = F.cross_entropy(output.concept_logits.repeat_interleave(2, 1).flatten(0, 1), labels.flatten())
    assert abs(loss.item() - (next_token_loss(output.logits) + 0.3 * named).item()) < 1e-12
    assert not any("channel.vector" in name for name, _ in model.named_parameters())
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize(("progress", "share"), [(0.0, 1.0), (0.25, 0.5), (0.5, 0.0), (0.9, 0.0)])
def test_lambda_falls_to_nothing(progress: float, share: float) -> None:
    model, labels = student(), torch.ones(2, 7, 2, dtype=torch.long)
    batch = {"input_ids": IDS, "concept_labels": labels, "progress": torch.tensor(progress, dtype=torch.float64)}
    output = model(IDS, labels=IDS, concept_labels=labels)
    expected = output.lm_loss + 0.3 * share * output.concept_loss
    assert abs(CoCoMixObjective(model, until=0.5)(batch).item() - expected.item()) < 1e-9


def bootstrap(top: bool = True) -> BootstrapObjective:
    model = mixed("concepts", concept_loss_weight=0.3)
    return BootstrapObjective(model, TopKSAE(8, 10, 3).double(), top=top, decay=0.9, labels_per_position=2, warmup=0.5)


@pytest.mark.parametrize("top", [True, False])
def test_self_bootstrapping(top: bool) -> None:
    objective = bootstrap(top).train()
    everything = objective.trainable()
    model, average, sae = everything.student, everything.average, everything.sae_training.sae
    for parameter in average.parameters():  # an average that is not the student any more
        parameter.data.mul_(0.9)
    states = average(IDS, output_hidden_states=True).hidden_states
    hidden = (states[-1][:, 1::2] if top else states[1]).float().double()
    for progress, weight in ((0.4, 0.0), (0.5, 0.3)):
        model.zero_grad(set_to_none=True)
        loss = objective({"input_ids": IDS, "progress": torch.tensor(progress)})
        output, named = model(IDS), []
        dense = sae.encode_dense(hidden)
        for b in range(2):
            for t in range(7):
                best = dense[b, t].topk(2)
                for value, label in zip(best.values, best.indices, strict=True):
                    if value > 0:
                        named.append(-F.log_softmax(output.concept_logits[b, t], -1)[label])
        normed = sae.preprocess(hidden.flatten(0, 1))[0]
        error = (normed - (sae.encode_dense(hidden.flatten(0, 1)) @ sae.decoder_weight + sae.pre_bias)) ** 2
        reconstruction = error.mean() / (normed - normed.mean(0)).square().mean()
        slow = next_token_loss(output.logits) + weight * sum(named) / len(named) + reconstruction
        assert abs(loss.item() - slow.item()) < 1e-6  # the autoencoder's input is float32
    loss.backward()
    assert no_gradient(average)
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    assert sae.encoder_weight.grad.any() and sae.decoder_weight.grad.any()
    assert objective.evaluated() is model
    assert list(objective.clipped()) == [model, everything.sae_training]


def test_the_autoencoder_of_bootstrapping_and_the_student_do_not_pull_at_each_other() -> None:
    alone = bootstrap().train()
    alone.trainable().student.config.concept_loss_weight = 0.0
    alone({"input_ids": IDS, "progress": torch.tensor(0.9)}).backward()
    plain = mixed("concepts", concept_loss_weight=0.0)
    NtpObjective(plain)({"input_ids": IDS}).backward()
    ours = dict(alone.trainable().student.named_parameters())
    for name, parameter in plain.named_parameters():
        assert torch.allclose(ours[name].grad, parameter.grad, atol=1e-12), name


def test_the_average_follows_the_student_slowly() -> None:
    objective = bootstrap()
    everything = objective.trainable()
    before = everything.average.lm_head.weight.clone()
    everything.student.lm_head.weight.data.add_(1.0)
    everything.steps += 999
    objective.after_step()
    assert torch.allclose(everything.average.lm_head.weight, before + 0.1)
    everything.steps.zero_()
    objective.after_step()  # the first step: nearly the student itself
    assert torch.allclose(everything.average.lm_head.weight, before + 1 - 0.9 / 11)
