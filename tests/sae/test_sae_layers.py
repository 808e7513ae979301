"""Autoencoders of several layers on one pass of the concept model: the bits of each alone, from training to labels."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from cocomix.explorer.sessions import RunSession
from cocomix.model.flops import model_parts
from cocomix.model.teacher import blocks, hidden_at, hidden_at_layers
from cocomix.objectives import Objective, SaeObjective
from cocomix.objectives.sae import SaeLayersObjective
from cocomix.pipeline.concept_stages import name_run
from cocomix.pipeline.run import Run
from cocomix.pipeline.trained import export_sae, inspect_text, labels_of, sae_stage
from cocomix.sae import TopKSAE
from cocomix.sae.formats import load_sae
from cocomix.sae.kinds import SAE_KINDS
from cocomix.sae.positions import LeftOut
from cocomix.train.config import TrainConfig
from cocomix.train.trainer import Trainer
from cocomix.utils.errors import CocomixError, Interrupted
from tests.helpers.distributed_programs import torchrun
from tests.helpers.every_objective import data, plain
from tests.helpers.small_llamas import small_llama
from tests.helpers.toy_runs import toy_run, write_texts

CONFIG = TrainConfig(batch_size=4, micro_batch_size=2, steps=5, learning_rate=0.01, n_evals=0, grad_clip=0.01)
OPTIONS = {"aux_k": 4, "dead_after_tokens": 40}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_one_pass_gives_what_a_pass_for_each_layer_does(family: str) -> None:
    model = plain(0).eval() if family == "gpt2" else small_llama(50).eval()
    ids, deepest = torch.randint(0, 50, (2, 8)), len(blocks(model)) - 2
    ran: list[int] = []
    for number, block in enumerate(blocks(model)):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    layers = [deepest, *range(deepest)]
    for layer, hidden in zip(layers, hidden_at_layers(model, ids, layers), strict=True):
        assert torch.equal(hidden, hidden_at(model, ids, layer))
    assert ran.count(deepest) == 2 and deepest + 1 not in ran, "one pass for all, one for itself, none above"
    with pytest.raises(CocomixError, match="layer"):
        hidden_at_layers(model, ids, [0, 99])


def test_a_block_that_writes_into_its_input_changes_nothing() -> None:
    class InPlace(nn.Module):
        def forward(self, hidden: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
            return hidden.mul_(2)

    model = plain(0).eval()
    ids = torch.randint(0, 50, (2, 8))
    expected = hidden_at(model, ids, 0)
    model.transformer.h[1] = InPlace()
    first, second = hidden_at_layers(model, ids, [0, 1])
    assert torch.equal(first, expected) and torch.equal(second, 2 * expected)


def _part(kind: str, layer: int) -> SaeObjective:
    torch.manual_seed(3)
    training = SAE_KINDS[kind].make(16, 24, 3, **OPTIONS)
    part = SaeObjective(training, plain(5).eval(), layer=layer, left_out=LeftOut(1, 1.4))
    part.initialise(torch.randint(0, 50, (6, 8), generator=torch.Generator().manual_seed(1)), "data")
    return part


def _trained(make: Callable[[], Objective], home: Path, name: str, stop_at: int = 0) -> dict[str, torch.Tensor]:
    def stop(step: int, _total: int, _metrics: dict[str, float]) -> None:
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    objective = make()
    trainer = Trainer(objective, data(home / "shards"), CONFIG, home / name, progress=stop)
    if stop_at:
        with pytest.raises(Interrupted):
            trainer.run()
        return _trained(make, home, name)
    trainer.run()
    return {key: tensor.clone() for key, tensor in objective.trainable().state_dict().items()}


@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_each_ends_with_the_bits_of_one_trained_alone_and_resumes(
    kind: str, tmp_path: Path, no_waiting_for_the_disk: None
) -> None:
    layers = (1, 0)

    def together() -> Objective:
        return SaeLayersObjective([_part(kind, layer) for layer in layers])

    whole = _trained(together, tmp_path, "together")
    cut = _trained(together, tmp_path, "cut", stop_at=2)
    assert whole.keys() == cut.keys() and all(torch.equal(whole[key], cut[key]) for key in whole)
    for layer in layers:
        alone = _trained(lambda layer=layer: _part(kind, layer), tmp_path, f"alone-{layer}")
        before = _part(kind, layer).trainable().state_dict()
        for key, tensor in alone.items():
            assert torch.equal(whole[f"layer-{layer}.{key}"], tensor), (layer, key)
        assert any(not torch.equal(before[key], tensor) for key, tensor in alone.items())


def test_flops_count_the_pass_once() -> None:
    parts = [_part("topk", layer) for layer in (0, 1)]
    both = SaeLayersObjective(parts).flops_per_token(8)
    block = model_parts(parts[0]._teacher[0].config, 8).block
    assert both == pytest.approx(sum(part.flops_per_token(8) for part in parts) - block)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def run(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The finished stages of a run with autoencoders of three layers, up to the labels of two of them."""
    more = ("sae.layer=1", "sae.also=[2, 0]", "labels.above={rule: activation, k: 2, batch_size: 4, layer: 2}")
    more += ("students.cocomix.labels=above", "evaluation.probe_positions=0")
    made = toy_run(tmp_path_factory.mktemp("layers"), texts, *more)
    for stage in made.shared():
        made.do(stage, stage.name)
    return made


@pytest.mark.slow
def test_the_stage_keeps_each_as_if_it_had_been_alone(run: Run, texts: Path, tmp_path: Path) -> None:
    for layer in (1, 2):
        other = toy_run(tmp_path / str(layer), texts, f"sae.layer={layer}", "evaluation.probe_positions=0")
        for name in ("corpus", "tokens", "teacher"):
            shutil.copytree(run.folder / name, other.folder / name)
        other.do(other.sae, "sae")
        mine = run.sae.of_layer(layer)
        assert mine.checksum() == other.sae.checksum() and mine.layer == layer
        alone, together = other.sae.figures, mine.figures
        assert {name: together[name] for name in alone if name not in ("flops", "seconds", "wait_share", "curve")} == {
            name: value for name, value in alone.items() if name not in ("flops", "seconds", "wait_share", "curve")
        }
        assert alone["flops"] < together["flops"]
    assert "after block 0" in (run.sae.folder / "quality-layer-0.html").read_text()
    described = run.sae.describe(run.sae.figures)
    assert described.count("explained variance") == 3 and "block 2: " in described


@pytest.mark.slow
def test_labels_names_and_exports_follow_the_layer(run: Run, tmp_path: Path) -> None:
    above, student = run.labels["above"], next(one for one in run.students if one.labels)
    assert above.sae is run.sae.of_layer(2) and student.sae is above.sae and student._sizes("cocomix").sae_layer == 2
    assert above.lineage("val")["layer"] == 2 and above.lineage("val")["sae"] == above.sae.checksum()  # pyright: ignore
    assert above.layer_setting == {"layer": 2} and above.describe_labels("helpful") == "activation/helpful, block 2"
    ids = list(range(5, 25))
    found = labels_of(student, ids, run.teacher.model(), above.sae.model())
    hidden = hidden_at(run.teacher.model(), torch.tensor([ids]), 2)
    latents = above.sae.model().encode(hidden)
    best = latents.ids.gather(-1, latents.values.topk(2, dim=-1).indices)
    assert found is not None
    assert torch.equal(found.ids[:, :-1].sort(-1).values, best[:, :-1].sort(-1).values)
    assert (above.sae.names_file, run.sae.names_file) == ("names-layer-2.json", "names.json")
    session = RunSession(run.folder, 0)
    read = session.labels(next(one for one in session.run.students if one.labels), ids)
    assert read is not None and torch.equal(read.ids[:, :-1], found.ids[:, :-1])
    assert session.name_store(student).key == above.sae.checksum() != run.sae.checksum()
    assert session.run.sae_layers_read == [1, 2]
    for layer in (None, 0):
        export_sae(run, "saelens", tmp_path / f"{layer}", layer=layer)
        loaded = load_sae(str(tmp_path / f"{layer}"), layer=1 if layer is None else 0, d_model=16, k=4).sae
        sae = sae_stage(run, layer).model()
        assert torch.allclose(loaded.encoder_weight, sae.encoder_weight, atol=1e-5)
    assert isinstance(sae, TopKSAE)
    with pytest.raises(CocomixError, match=r"no autoencoder of block 3; there are those of 1, 2, 0 \(sae.layer"):
        sae_stage(run, 3)


@pytest.mark.long
def test_two_processes_train_all_and_a_student_learns_from_one(run: Run, texts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder, ignore=shutil.ignore_patterns("sae", "labels"))
    torchrun(2, "-m", "cocomix", "sae", "-r", str(folder))
    two = Run(folder, run.config)
    for layer in run.config.sae.layers:
        ours, theirs = two.sae.of_layer(layer), run.sae.of_layer(layer)
        weights = zip(ours.model().parameters(), theirs.model().parameters(), strict=True)
        assert all(torch.allclose(one, other, atol=1e-4) for one, other in weights)
        assert ours.figures["explained_variance"] == pytest.approx(theirs.figures["explained_variance"], abs=1e-3)
    for name in ("labels/above", "students/cocomix/seed0", "evaluation/cocomix/seed0"):
        two.do(two.stages[name], name)
    assert two.stages["evaluation/cocomix/seed0"].figures["recall"] is not None
    names = name_run(folder, tokens=500, layer=2)
    assert names.found is not None and names.found.sae == two.sae.of_layer(2).checksum()
    assert (folder / "names-layer-2.json").exists() and not (folder / "names.json").exists()
    reading = inspect_text(folder, "the road and ship", student="cocomix", seed=0, top=2, concept=None)
    assert reading is not None


def test_settings_that_do_not_fit_and_old_fingerprints(texts: Path, tmp_path: Path) -> None:
    def made(*more: str) -> Run:
        return toy_run(tmp_path / "run", texts, *more)

    plain_run = made()
    assert not {"also", "layer_setting"} & set(plain_run.sae.settings())
    assert "layer" not in plain_run.stages["labels/exact"].settings()
    same = made("sae.also=[]", "labels.exact.layer=0")
    assert same.sae.fingerprint == plain_run.sae.fingerprint
    assert same.stages["labels/exact"].settings() == plain_run.stages["labels/exact"].settings()
    for overrides, message in (
        (("sae.also=[3]",), "sae.also 3 is outside the teacher's 3 blocks; choose 0 to 2"),
        (("sae.also=[0]",), r"also \[0\] must be blocks other than layer 0, each once"),
        (("sae.also=[1]", "sae.pretrained=x"), "a loaded one is of one layer"),
        (("labels.exact.layer=2",), "labels 'exact' are of block 2, which has no autoencoder; there are those of 0"),
        (
            (
                "sae.also=[1]",
                "labels.other={rule: exact, layer: 1, k: 2}",
                "students.cocomix.labels=[{set: exact}, {set: other}]",
            ),
            r"the labels of student 'cocomix' are of several layers \(exact 0, other 1\); give them the same",
        ),
    ):
        with pytest.raises(CocomixError, match=message):
            made(*overrides)
