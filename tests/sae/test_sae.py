"""The autoencoder: sparse equals dense, OpenAI's layout, unit-norm rows, dead latents revived."""

import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cocomix.sae import SaeTraining, TopKSAE, from_openai, load_openai_file
from cocomix.sae.sae import ACTIVATIONS, NORMALISATIONS
from cocomix.utils.errors import CocomixError


def sae(k: int = 3) -> TopKSAE:
    torch.manual_seed(0)
    made = TopKSAE(8, 20, k).double()
    torch.nn.init.normal_(made.pre_bias)
    torch.nn.init.normal_(made.latent_bias)
    return made


def openai_state(source: TopKSAE) -> dict:
    return {
        "pre_bias": source.pre_bias.data,
        "encoder.weight": source.encoder_weight.data,
        "latent_bias": source.latent_bias.data,
        "decoder.weight": source.decoder_weight.data.T.contiguous(),
        "stats_last_nonzero": torch.zeros(20, dtype=torch.long),
        "activation": "TopK",
        "activation_state_dict": {"k": 3, "postact_fn": "ReLU"},
    }


def test_encode_and_decode_equal_the_formula() -> None:
    made, x = sae(), torch.randn(5, 8, dtype=torch.double)
    mean, std = x.mean(-1, keepdim=True), x.std(-1, unbiased=True, keepdim=True)
    pre = ((x - mean) / (std + 1e-5) - made.pre_bias) @ made.encoder_weight.T + made.latent_bias
    dense = torch.zeros_like(pre)
    for row in range(5):
        for column in pre[row].argsort(descending=True)[:3]:
            dense[row, column] = max(pre[row, column], 0)
    assert (made.encode_dense(x) - dense).abs().max() < 1e-12
    slow = (dense @ made.decoder_weight + made.pre_bias) * std + mean
    assert (made(x) - slow).abs().max() < 1e-12


def test_directional_derivative_equals_the_dense_product() -> None:
    made = sae()
    gradient, ids = torch.randn(2, 7, 8, dtype=torch.double), torch.randint(0, 20, (2, 7, 3))
    slow = (gradient @ made.decoder_weight.T).gather(-1, ids)
    assert (made.active_directional_derivative(gradient, ids) - slow).abs().max() < 1e-12


def test_openai_layout_in_memory_and_as_a_file(tmp_path: Path) -> None:
    source, x = sae(), torch.randn(4, 8, dtype=torch.double)
    state = openai_state(source)
    leaked = {key: value for key, value in state.items() if key != "activation_state_dict"}
    leaked |= {"activation.k": 3, "activation.postact_fn": "ReLU"}
    torch.save(state, tmp_path / "v5_32k_layer_6.pt")
    for loaded in (
        from_openai(state),
        from_openai(leaked),
        load_openai_file(tmp_path / "v5_32k_layer_6.pt"),
    ):
        assert torch.equal(loaded(x), source(x)) and loaded.k == 3 and loaded.normalisation == "standard"
    linear = from_openai(state | {"activation_state_dict": {"k": 3, "postact_fn": "Identity"}})
    assert linear.activation.kind == "identity"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"activation": "ReLU"}, "'ReLU', not TopK"),
        ({"activation_state_dict": {"k": 3, "postact_fn": "Tanh"}}, "'Tanh'"),
        ({"pre_bias": torch.zeros(3)}, "pre_bias has shape"),
        ({"extra": torch.zeros(3)}, "'extra' is missing or unknown"),
        ({"activation_state_dict": {"k": 21, "postact_fn": "ReLU"}}, "21 active latents do not fit"),
    ],
)
def test_another_layout_is_refused_by_name(change: dict, words: str) -> None:
    with pytest.raises(CocomixError, match=words):
        from_openai(openai_state(sae()) | change)


class Hostile:
    """Unpickling this would run code."""

    def __reduce__(self):
        return (print, ("executed",))


def test_a_file_with_pickled_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"pre_bias": Hostile()}, tmp_path / "bad.pt")
    with pytest.raises(CocomixError, match="not a plain weights file"):
        load_openai_file(tmp_path / "bad.pt")
    assert "executed" not in capsys.readouterr().out
    with pytest.raises(CocomixError, match="no SAE at"):
        load_openai_file(tmp_path / "absent.pt")


def test_a_truncated_file_and_none_are_refused(tmp_path: Path) -> None:
    sae().save_pretrained(tmp_path, layer=2)
    weights = tmp_path / "sae.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(CocomixError, match="damaged"):
        TopKSAE.from_pretrained(tmp_path)
    with pytest.raises(CocomixError, match="holds no autoencoder"):
        TopKSAE.from_pretrained(tmp_path / "nowhere")


def test_training_loss_equals_the_formula_and_reaches_dead_latents() -> None:
    made, x = sae(), torch.randn(50, 8, dtype=torch.double)
    silent = torch.tensor([4, 9, 13])
    made.latent_bias.data[silent] = -0.5  # rarely among the top k, yet often positive before it
    training = SaeTraining(made, aux_k=2, aux_coefficient=0.5, dead_after_tokens=10)
    normed, _, _ = made.preprocess(x)
    latents = made.encode(x)
    guess = (
        latents.values.new_zeros(50, 20).scatter(-1, latents.ids, latents.values) @ made.decoder_weight + made.pre_bias
    )
    scale = (normed - normed.mean(0)).square().mean()
    main = (normed - guess).square().mean() / scale
    training.eval()
    assert abs(training(x).item() - main.item()) < 1e-12

    dead = silent.tolist()
    training.tokens_since_fired[dead] = 11
    pre = made.pre_activations(normed)
    columns = torch.full_like(pre, -torch.inf)
    columns[:, dead] = pre[:, dead]
    top = columns.topk(2, dim=-1)
    chosen = torch.zeros_like(pre).scatter(-1, top.indices, top.values.clamp_min(0))
    left = (normed - guess).detach()
    auxiliary = (chosen @ made.decoder_weight - left).square().mean() / left.square().mean()
    loss = training(x)
    assert abs(loss.item() - (main + 0.5 * auxiliary).item()) < 1e-12
    loss.backward()
    # Latents that neither fired nor count as dead get nothing; among the dead the most active ones do.
    moved = made.encoder_weight.grad.abs().sum(-1) > 0
    fired = set(latents.ids[latents.values > 0].unique().tolist())
    revived = set(moved.nonzero().flatten().tolist()) - fired
    assert revived and revived <= set(dead)


def test_dead_latents_are_counted_in_tokens() -> None:
    made = sae()
    training = SaeTraining(made, dead_after_tokens=10).train()
    x = torch.randn(6, 8, dtype=torch.double)
    training(x), training(x)
    latents = made.encode(x)
    fired = latents.ids[latents.values > 0].unique()
    assert (training.tokens_since_fired[fired] == 0).all()
    silent = sorted(set(range(20)) - set(fired.tolist()))
    assert silent and (training.tokens_since_fired[silent] == 12).all()


def test_decoder_rows_stay_unit_norm_and_lose_the_parallel_gradient() -> None:
    made = sae()
    made.normalize_decoder_()
    made.decoder_weight.grad = torch.randn_like(made.decoder_weight)
    made.remove_parallel_gradient_()
    assert (made.decoder_weight.grad * made.decoder_weight).sum(-1).abs().max() < 1e-12
    made.decoder_weight.data.mul_(3)
    made.normalize_decoder_()
    assert (made.decoder_weight.norm(dim=-1) - 1).abs().max() < 1e-12


@pytest.mark.parametrize("kind", ["relu", "identity", "jumprelu", "groupmax"])
def test_selecting_equals_the_k_largest_of_the_definition(kind: str) -> None:
    act = ACTIVATIONS[kind](20, **({"groups": 5} if kind == "groupmax" else {}))
    for buffer in act.buffers():
        torch.nn.init.uniform_(buffer, 0.2, 1.5)
    pre = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    slow = torch.zeros_like(pre)
    for row in range(50):
        for column in range(20):
            value = pre[row, column].item()
            group = pre[row, column // 4 * 4 : column // 4 * 4 + 4]
            alive = {
                "relu": value > 0,
                "identity": True,
                "jumprelu": value > max(getattr(act, "threshold", pre)[column].max().item(), 0),
                "groupmax": value > 0 and value == group.max().item(),
            }[kind]
            slow[row, column] = value if alive else 0.0
    assert torch.equal(act(pre), slow)
    values, ids = act.select(pre, 3)
    best = slow.topk(3, dim=-1)
    assert torch.equal(values, best.values)
    assert torch.equal(slow.gather(-1, ids), values)
    assert kind == "identity" or (values >= 0).all()


def test_a_k_that_leaves_no_latent_to_a_group_is_refused() -> None:
    with pytest.raises(CocomixError, match="k 6 exceeds the 5 groups"):
        ACTIVATIONS["groupmax"](20, groups=5).select(torch.zeros(1, 20), 6)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_std_is_the_decoder_s_derivative_under_every_normalisation(normalisation: str) -> None:
    torch.manual_seed(0)
    made = TopKSAE(8, 20, 3, normalisation=normalisation).double()
    torch.nn.init.normal_(made.pre_bias)
    x, gradient = torch.randn(5, 8, dtype=torch.double) * 3 + 1, torch.randn(5, 8, dtype=torch.double)
    latents = made.encode(x)
    c = made.encode_dense(x).detach().requires_grad_()
    _, mean, std = made.preprocess(x)
    dense = (c @ made.decoder_weight + made.pre_bias) * std + mean
    assert (dense - made(x)).abs().max() < 1e-12
    (slow,) = torch.autograd.grad((dense * gradient).sum(), c)
    fast = latents.std * made.active_directional_derivative(gradient, latents.ids)
    assert (fast - slow.gather(-1, latents.ids)).abs().max() < 1e-12


def test_a_hidden_state_of_zeros_is_no_problem_when_rescaled() -> None:
    made = TopKSAE(8, 20, 3, normalisation="rescale")
    assert torch.equal(made(torch.zeros(2, 8)), torch.zeros(2, 8))


def test_more_active_latents_than_latents_is_refused() -> None:
    with pytest.raises(CocomixError, match="5 active latents do not fit into 4"):
        TopKSAE(8, 4, 5)
    with pytest.raises(CocomixError, match="no normalisation 'batch'"):
        TopKSAE(8, 4, 2, normalisation="batch")


def packed(path: Path, state: dict) -> None:
    torch.save(state, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def spread(path: Path, state: dict) -> None:
    torch.save(state | {"encoder.weight": torch.zeros(1, 1).expand(1 << 30, 8)}, path)


def old_format(path: Path, state: dict) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def long_pickle(path: Path, state: dict) -> None:
    torch.save(state | {"x": "x" * (1 << 21)}, path)


def tar(path: Path, state: dict) -> None:
    path.write_bytes(bytes(1000))


@pytest.mark.parametrize("write", [packed, spread, old_format, long_pickle, tar], ids=lambda one: one.__name__)
def test_a_file_that_unpacks_to_more_than_it_holds_is_refused(
    tmp_path: Path, write: Callable[[Path, dict], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "mkdtemp", lambda *_, **__: pytest.fail("it was unpacked"))
    write(tmp_path / "a.pt", openai_state(sae()))
    with pytest.raises(CocomixError, match="use an intact file"):
        load_openai_file(tmp_path / "a.pt")


def test_rows_from_data_point_at_hidden_states_without_repetition() -> None:
    made, x = sae(), torch.randn(50, 8, dtype=torch.double)
    made.init_from_data(x)
    made.rows_from_data_(x)
    seen = torch.nn.functional.normalize(made.preprocess(x)[0] - made.pre_bias, dim=-1)
    nearest = (made.decoder_weight @ seen.T).max(-1)
    assert (nearest.values - 1).abs().max() < 1e-12 and len(nearest.indices.unique()) == 20
    factors = made.encoder_weight.norm(dim=-1)
    assert torch.allclose(made.encoder_weight, made.decoder_weight * factors[0]) and factors[0] > 0
    made.rows_from_data_(x[:7])  # fewer hidden states than latents: each is used before one is used again
    counts = torch.bincount((made.encoder_weight @ seen[:7].T).argmax(-1))
    assert counts.max() - counts.min() <= 1 and len(counts) == 7


def test_rows_from_data_of_hidden_states_with_much_in_common_do_not_overshoot() -> None:
    made = TopKSAE(16, 64, 8).double()
    x = torch.randn(300, 16, dtype=torch.double) + 3 * torch.randn(300, 1, dtype=torch.double).abs() * torch.arange(16)
    made.init_from_data(x)
    made.rows_from_data_(x)

    def error() -> torch.Tensor:
        normed = made.preprocess(x)[0]
        return (normed - made.pre_bias - made.combine(*made.chosen(normed))).square().sum()

    best, nothing = error(), (made.preprocess(x)[0] - made.pre_bias).square().sum()
    assert best < nothing
    for factor in (0.9, 1.1):
        with torch.no_grad():
            made.encoder_weight.mul_(factor)
        assert error() > best
        with torch.no_grad():
            made.encoder_weight.div_(factor)
