"""Labels in windows that follow documents: each position once, with half a window of context, by the exact rule."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cocomix.data.document_windows import DocumentWindows
from cocomix.data.shards import TokenShards, write_shards
from cocomix.data.special_tokens import SpecialTokens
from cocomix.labels import LabelStore, select_labels
from cocomix.labels.attribution import attribute_active
from cocomix.labels.labeller import ConceptLabeller, label_split
from cocomix.model import hidden_at
from cocomix.sae import TopKSAE
from cocomix.sae.positions import NOTHING, LeftOut
from tests.helpers.patched_passes import patched_loop
from tests.helpers.small_llamas import small_llama

VOCABULARY, EOS, BOS = 40, 0, 1
POLICIES = {
    "plain": SpecialTokens(None, EOS),
    "bos": SpecialTokens(BOS, EOS),
    "bos is eos": SpecialTokens(EOS, EOS),
}


def _shards(folder: Path, sizes: list[int], policy: SpecialTokens, seed: int = 0) -> TokenShards:
    rng = np.random.default_rng(seed)
    documents = [rng.integers(2, VOCABULARY, size) for size in sizes]
    return write_shards(folder, documents, vocab_size=VOCABULARY, eos_id=EOS, shard_tokens=50, special=policy)


@pytest.mark.parametrize("policy", POLICIES)
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=5), seq_len=st.integers(4, 17))
def test_every_token_with_a_next_one_is_used_once_and_with_context(
    policy: str, sizes: list[int], seq_len: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shards = _shards(tmp_path_factory.mktemp("tokens") / "t", sizes, POLICIES[policy])
    windows = DocumentWindows(shards, seq_len, overlapping=True)
    before = windows.special.first_position
    count = windows.n_windows(seq_len)
    ids, bounds = windows.windows(np.arange(count), seq_len), windows.bounds(np.arange(count))
    used = bounds.used(seq_len)
    found: dict[int, tuple[int, int]] = {}
    starts, stream = shards.documents.tolist(), shards.span(0, shards.n_tokens)
    body = [start + len(windows.special.before_document) for start in starts]
    ends = [*starts[1:], shards.n_tokens]
    for position in range(shards.n_tokens):
        document = max(d for d in range(len(starts)) if starts[d] <= position)
        window, place = (int(x) for x in windows.locate(np.array(position)))
        if not body[document] <= position < ends[document] - 1:
            assert window == -1
            continue
        assert used[window, place]
        found[position] = (window, place)
        # What the window holds up to there, and its next token, is the document and nothing else.
        context = ids[window, before : place + 2]
        assert context.tolist() == stream[position + 2 - len(context) : position + 2].tolist()
        assert position + 2 - len(context) >= body[document]
        whole = position + 1 - body[document]
        assert len(context) - 1 >= min(whole, (seq_len - before) / 2)
    assert len(set(found.values())) == len(found) == used.sum() == windows.n_used()
    if before:
        assert (ids[:, 0] == windows.special.bos_id).all() and not used[:, 0].any()


def _float64() -> tuple[torch.nn.Module, TopKSAE]:
    torch.manual_seed(3)
    model = small_llama(VOCABULARY).double().eval()
    sae = TopKSAE(16, 24, 6).double()
    return model, sae


@pytest.mark.parametrize("rule", ["exact", "reference", "activation"])
@pytest.mark.parametrize(("policy", "left_out"), [("plain", NOTHING), ("bos", LeftOut(0, 1.1))])
def test_labels_are_those_of_separate_passes_over_each_window(
    rule: str, policy: str, left_out: LeftOut, tmp_path: Path
) -> None:
    model, sae = _float64()
    shards = _shards(tmp_path / "tokens", [37, 3, 18], POLICIES[policy])
    windows = DocumentWindows(shards, 12, overlapping=True)
    labeller = ConceptLabeller(
        model,  # pyright: ignore[reportArgumentType]
        sae,
        layer=1,
        rule=rule,
        signs=("absolute", "helpful"),
        k=2,
        batch_size=4,
        first_position=windows.special.first_position,
        left_out=left_out,
    )
    figures = label_split(labeller, windows, tmp_path / "labels", seq_len=12, lineage={}, scores=True)
    assert figures["tokens"] == windows.n_windows(12) * 12
    missing = 0
    for sign in ("absolute", "helpful"):
        store = LabelStore.open(tmp_path / "labels" / sign)
        for window in range(windows.n_windows(12)):
            one = np.array([window])
            bounds = windows.bounds(one)
            length, used = int(bounds.lengths[0]), bounds.used(12)[0]
            ids = torch.from_numpy(windows.windows(one, 12))[:, :length]  # no padding at all
            if length < 2:
                assert not used.any()
                continue
            if rule == "exact":
                scores = patched_loop(model, sae, ids, 1)
            else:
                active = attribute_active(model, sae, ids, layer=1, rule=rule)  # pyright: ignore[reportArgumentType]
                scores = torch.zeros(1, length, 24, dtype=torch.float64).scatter(-1, active.ids, active.scores)
            signed = scores if rule == "activation" else scores.abs() if sign == "absolute" else -scores
            expected = select_labels(signed, 2)
            kept = left_out.kept(hidden_at(model, ids, 1))[0].numpy()  # pyright: ignore[reportArgumentType]
            valid = expected.valid[0].numpy() & used[:length] & kept
            missing += int((~kept & used[:length]).sum())
            actual = store.read(one, 12)[0]
            assert (actual[:, 0] >= 0).tolist() == [*valid.tolist(), *[False] * (12 - length)]
            assert actual[:length][valid].tolist() == expected.ids[0].numpy()[valid].tolist()
            if rule != "reference":  # whose mean is over the batch
                torch.testing.assert_close(
                    store.read_scores(one, 12)[0][:length][valid],
                    expected.scores[0].detach().numpy()[valid].astype(np.float32),
                    rtol=1e-6,
                    atol=1e-12,
                )
    assert (missing > 0) == (left_out != NOTHING)


def test_the_second_half_alone_costs_half_of_the_patched_stream() -> None:
    model, sae = _float64()
    ids = torch.arange(24).reshape(1, 24) % VOCABULARY
    seen: list[int] = []
    handle = model.model.norm.register_forward_hook(lambda _m, _i, out: seen.append(out.shape[1]))  # pyright: ignore
    whole = attribute_active(model, sae, ids, layer=1)  # pyright: ignore[reportArgumentType]
    seen.clear()
    half = attribute_active(model, sae, ids, layer=1, first=12)  # pyright: ignore[reportArgumentType]
    handle.remove()
    assert seen == [12]
    torch.testing.assert_close(half.scores[:, 12:], whole.scores[:, 12:], rtol=1e-9, atol=1e-14)
    assert not half.valid[:, :12].any() and (half.valid[:, 12:] == whole.valid[:, 12:]).all()
