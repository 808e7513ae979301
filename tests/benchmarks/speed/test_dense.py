"""The dense twins compute what our fast paths compute: losses, every gradient, attribution and labels, in float64."""

import pytest
import torch

from benchmarks.speed.dense import DenseStudent, dense_attribution, dense_labels
from benchmarks.speed.shapes import SHAPES
from benchmarks.speed.synthetic import student_config
from cocomix.labels import ConceptLabeller, attribute, select_labels
from cocomix.model import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.model.build import ModelShape, build_plain
from cocomix.objectives import CoCoMixObjective
from cocomix.sae import TopKSAE
from tests.helpers.randomised import randomised

BLOCK = {
    "norm_1": ("ln_1", False),
    "norm_2": ("ln_2", False),
    "attention.qkv": ("attn.c_attn", True),
    "attention.out": ("attn.c_proj", True),
    "mlp.up": ("mlp.c_fc", True),
    "mlp.down": ("mlp.c_proj", True),
}
"""Ours to Transformers', and whether its matrix is the other way round."""
REST = {
    "backbone.embed_tokens.weight": ("gpt2.transformer.wte.weight", False),
    "backbone.embed_positions.weight": ("gpt2.transformer.wpe.weight", False),
    "backbone.final_norm.weight": ("gpt2.transformer.ln_f.weight", False),
    "backbone.final_norm.bias": ("gpt2.transformer.ln_f.bias", False),
    "channel.head.pre_bias": ("pre_bias", False),
    "channel.head.proj.weight": ("head.weight", False),
    "channel.head.proj.bias": ("head.bias", False),
    "channel.vector.weight": ("compress.weight", True),
    "channel.vector.bias": ("compress.bias", False),
}


def twins(layers: int) -> dict[str, tuple[str, bool]]:
    """The twin's name of each of our parameters, and whether it is transposed there."""
    names = dict(REST)
    for block in range(layers):
        for ours, (theirs, turned) in BLOCK.items():
            for kind in ("weight", "bias"):
                turn = turned and kind == "weight"
                names[f"backbone.blocks.{block}.{ours}.{kind}"] = (f"gpt2.transformer.h.{block}.{theirs}.{kind}", turn)
    return names


@pytest.mark.parametrize(("layers", "split"), [(3, 1), (4, 3)])
def test_the_dense_student_computes_our_loss_and_every_gradient(layers: int, split: int) -> None:
    torch.manual_seed(0)
    config = CoCoMixConfig(
        vocab_size=37, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, max_position_embeddings=12,
        concept_layer=split, num_concepts=45, concept_top_k=6, concept_loss_weight=0.7,
    )  # fmt: skip
    ours = CoCoMixForCausalLM(config)
    randomised(ours)
    dense, names = DenseStudent(config).double(), twins(layers)
    mine, theirs = dict(ours.named_parameters()), dict(dense.named_parameters())
    assert set(names) == set(mine)
    assert {theirs_name for theirs_name, _ in names.values()} == set(theirs)
    with torch.no_grad():
        for name, (other, turned) in names.items():
            theirs[other].copy_(mine[name].T if turned else mine[name])
    ids, labels = torch.randint(37, (3, 11)), torch.randint(45, (3, 11, 4))
    labels[:, -1], labels[0, 4] = -100, -100
    batch = {"input_ids": ids, "concept_labels": labels}
    expected, found = dense(batch), CoCoMixObjective(ours)(batch)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    expected.backward()
    found.backward()
    for name, (other, turned) in names.items():
        gradient = theirs[other].grad
        assert gradient is not None and mine[name].grad is not None and gradient.abs().max() > 0, name
        twin = gradient.T if turned else gradient
        torch.testing.assert_close(mine[name].grad, twin, rtol=1e-8, atol=1e-11, msg=name)


def teacher_and_sae() -> tuple:
    torch.manual_seed(1)
    teacher = randomised(build_plain(ModelShape(width=16, layers=4, heads=2), vocab_size=37, seq_len=12)).eval()
    sae = TopKSAE(16, 60, 8)
    randomised(sae)
    return teacher, sae, torch.randint(37, (3, 12))


@pytest.mark.parametrize("layer", [0, 2])
def test_dense_attribution_is_our_reference_rule(layer: int) -> None:
    teacher, sae, ids = teacher_and_sae()
    expected = dense_attribution(teacher, sae, ids, layer)
    found = attribute(teacher, sae, ids, layer=layer, rule="reference", sign="signed")
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-14)


def test_dense_labels_are_our_labels_wherever_there_are_any() -> None:
    teacher, sae, ids = teacher_and_sae()
    found = dense_labels(teacher, sae, ids, 1, 4)
    wanted = select_labels(attribute(teacher, sae, ids, layer=1, rule="reference"), 4)
    labeller = ConceptLabeller(
        teacher, sae, layer=1, rule="reference", signs=["signed"], k=4, batch_size=len(ids), precision="fp32"
    )
    stored = labeller(ids)["signed"]
    assert wanted.valid.any() and torch.equal(stored.valid, wanted.valid)
    assert torch.equal(found[wanted.valid], wanted.ids[wanted.valid])
    assert torch.equal(found[wanted.valid], stored.ids[wanted.valid])


def test_dense_labelling_makes_gradients_everywhere_and_drops_them() -> None:
    teacher, sae, ids = teacher_and_sae()
    reached: set[str] = set()
    for name, parameter in teacher.named_parameters():
        parameter.register_hook(lambda gradient, name=name: reached.add(name))
    dense_attribution(teacher, sae, ids, 2)
    assert reached == {name for name, _ in teacher.named_parameters()}
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_measured_shape_is_the_one_of_the_bars() -> None:
    shape = SHAPES["69m"]
    config = student_config(shape)
    assert (config.hidden_size, config.num_hidden_layers, config.concept_layer) == (512, 8, 3)
    assert (config.num_concepts, config.concept_top_k, config.vocab_size) == (32768, 32, 50257)
    assert (shape.seq_len, shape.batch) == (1024, 2)
    with torch.device("meta"):
        teacher = build_plain(shape.teacher, vocab_size=shape.vocab, seq_len=shape.seq_len)
    assert round(sum(parameter.numel() for parameter in teacher.parameters()) / 1e6) == 124


def test_growth_changes_one_axis_alone() -> None:
    shape = SHAPES["69m"]
    for axis, values in shape.growth.axes.items():
        points = [shape.at(axis, value) for value in values]
        assert [getattr(point, axis) for point in points] == list(values)
        fixed = [point.model_dump(exclude={axis, "teacher", "concept_layer", "sae_layer"}) for point in points]
        assert all(one == fixed[0] for one in fixed)
    deep = shape.at("layers", 8)
    assert (deep.teacher.layers, deep.concept_layer, deep.sae_layer) == (8, 4, 3)
