"""Where special tokens stand: what each family of tokenizers does, and that text which spells one stays text."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cocomix.data import Document, SpecialTokens, TokenShards, load_tokenizer, write_shards
from cocomix.data.special_tokens import SAVED, policy_of_model, saved_with_tokenizer, with_policy
from cocomix.data.tokenize import encode_documents, load_encoder
from cocomix.utils.errors import CocomixError
from tests.helpers.tokenizer_families import FAMILIES, LETTERS

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "special_tokens.md"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A family's tokenizer, made once, and the folder it was saved in."""
    made: dict[str, tuple[Any, Path]] = {}

    def get(name: str) -> tuple[Any, Path]:
        if name not in made:
            folder = tmp_path_factory.mktemp("family")
            FAMILIES[name](folder).save_pretrained(folder)
            made[name] = load_tokenizer(str(folder)), folder
        return made[name]

    return get


def row(name: str, tokenizer: Any) -> str:
    """A line of the page's table."""

    def names(ids: list[int]) -> str:
        return " ".join(f"`{tokenizer.convert_ids_to_tokens(number)}`" for number in ids) or "nothing"

    plain, default = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    start = next(n for n in range(len(default)) if default[n : n + len(plain)] == plain)
    spelled = tokenizer.eos_token
    parsed = tokenizer(spelled, add_special_tokens=False)["input_ids"] == [tokenizer.eos_token_id]
    policy = SpecialTokens.of_tokenizer(tokenizer)
    cells = [
        name if name == "trained here" else f"`{name}`" if "Tokenizer" in name else name,
        names(default[:start]),
        names(default[start + len(plain) :]),
        f"`{spelled}` is read as the token" if parsed else "text",
        names([] if policy.bos_id is None else [policy.bos_id]),
        names([SpecialTokens.of_tokenizer(tokenizer, True).bos_id]),  # type: ignore[list-item]
        names([policy.eos_id]),
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def test_the_pages_table_is_what_the_families_do(family: Any) -> None:
    table = [row(name, family(name)[0]) for name in FAMILIES]
    page = PAGE.read_text(encoding="utf-8").partition("## What tokenizers do")[2]
    written = [line for line in page.splitlines() if line.startswith("| ")]
    assert written[1:] == table, "\n".join(table)


@pytest.mark.parametrize("name", FAMILIES)
def test_text_that_spells_special_tokens_is_text(family: Any, name: str) -> None:
    tokenizer, folder = family(name)
    spellings = sorted({*tokenizer.all_special_tokens, "<s>", "</s>", "<|endoftext|>"})
    letters = st.sampled_from([*(letter for letter in LETTERS if letter != "\n"), " "])
    texts = st.lists(st.one_of(st.sampled_from(spellings), st.text(letters, max_size=4)), max_size=6).map("".join)
    encoders = {
        bos: (policy, load_encoder(folder, len(tokenizer), policy.eos_id, policy))
        for bos in ("auto", True, False)
        for policy in [SpecialTokens.of_tokenizer(tokenizer, bos)]
    }
    special = set(tokenizer.all_special_ids)

    @settings(max_examples=20)
    @given(texts, st.sampled_from(["auto", True, False]))
    def holds(text: str, bos: Any) -> None:
        policy, encoder = encoders[bos]
        (document,) = encode_documents(encoder, [Document("", text)])
        ids, before = document.tolist(), policy.before_document
        assert ids[: len(before)] == before and ids[-1] == policy.eos_id
        inside = ids[len(before) : -1]
        assert special.isdisjoint(inside)
        assert policy.prompt(tokenizer, text) == ([] if policy.bos_id is None else [policy.bos_id]) + inside
        decoded = tokenizer.decode(inside, clean_up_tokenization_spaces=False)
        assert re.sub(r"\s+", " ", decoded).strip() == re.sub(r"\s+", " ", text).strip()

    holds()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("bos", ["auto", True, False])
def test_a_saved_tokenizer_does_by_default_what_the_policy_says(
    family: Any, name: str, bos: Any, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(str(family(name)[1]))
    policy = SpecialTokens.of_tokenizer(tokenizer, bos)
    with_policy(tokenizer, policy).save_pretrained(tmp_path / "model")
    loaded: Any = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert saved_with_tokenizer(loaded) == policy_of_model(loaded, str(tmp_path / "model"), "llama") == policy
    if loaded.is_fast:
        assert loaded("road")["input_ids"] == policy.prompt(loaded, "road")


def test_text_that_only_a_whole_word_model_could_read_as_a_token_is_unknown_or_refused(tmp_path: Path) -> None:
    def words(unknown: str | None) -> PreTrainedTokenizerFast:
        vocab = {"<s>": 0, "</s>": 1, "<unk>": 2, "road": 3}
        tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=unknown or "road"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>", **({"unk_token": unknown} if unknown else {})
        )

    known = words("<unk>")
    policy = SpecialTokens.of_tokenizer(known)
    assert policy.prompt(known, "road <s> </s> ship") == [3, 2, 2, 2]
    known.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path, 4, 1, policy)
    assert [ids.tolist() for ids in encode_documents(encoder, [Document("", "road </s>")])] == [[3, 2, 1]]
    with pytest.raises(CocomixError, match="makes the special token 0 of a text that only spells it"):
        policy.texts(words(None), ["road <s>"])


def test_two_tokens_before_a_text_are_refused_unless_it_is_said_what_to_do(family: Any) -> None:
    tokenizer = load_tokenizer(str(family("a template in tokenizer.json")[1]))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[attr-defined]
        single="<|begin_of_text|> <|end_of_text|> $A",
        special_tokens=[("<|begin_of_text|>", 0), ("<|end_of_text|>", 1)],
    )
    with pytest.raises(CocomixError, match=r"puts 2 tokens \(0, 1\) before a text .* set tokens.bos to true or false"):
        SpecialTokens.of_tokenizer(tokenizer)
    assert SpecialTokens.of_tokenizer(tokenizer, True).bos_id == 0
    assert SpecialTokens.of_tokenizer(tokenizer, False).bos_id is None


@pytest.mark.parametrize("bos", [None, 0, 1])
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    seq_len=st.integers(2, 7),
    shard_tokens=st.sampled_from([5, 64]),
)
@settings(max_examples=40)
def test_windows_begin_with_bos_once_and_hold_every_token(
    tmp_path_factory: pytest.TempPathFactory, bos: int | None, lengths: list[int], seq_len: int, shard_tokens: int
) -> None:
    """With BOS 1 another token than EOS 0, or the same."""
    policy, number, documents = SpecialTokens(bos, 0), iter(range(2, 10_000)), []
    for length in lengths:
        documents.append([next(number) for _ in range(length)])
    folder = tmp_path_factory.mktemp("shards") / "s"
    shards = write_shards(folder, documents, vocab_size=10_000, eos_id=0, shard_tokens=shard_tokens, special=policy)
    stream = shards.span(0, shards.n_tokens).tolist()
    assert stream == [token for document in documents for token in [*policy.before_document, *document, 0]]
    assert TokenShards.open(folder).special == policy
    windows = shards.windows(np.arange(shards.n_windows(seq_len)), seq_len).tolist()
    assert shards.labelled_tokens(seq_len) // seq_len == len(windows)
    if bos is None:
        assert [token for window in windows for token in window] == stream[: len(windows) * seq_len]
        return
    step, read = seq_len - 1, []
    for place, window in enumerate(windows):
        assert window[0] == bos and len(window) == seq_len
        start = place * step
        own = stream[start : start + step]
        assert window == (own + stream[start + step : start + step + 1] if own[0] == bos else [bos, *own])
        read += own
    assert read == stream[: len(windows) * step] and len(stream) - len(read) <= step


def test_the_policy_is_part_of_what_labels_depend_on_and_damage_is_refused(tmp_path: Path) -> None:
    documents = [[5, 6, 7], [8, 9]]
    plain = write_shards(tmp_path / "a", documents, vocab_size=20, eos_id=0)
    same = write_shards(tmp_path / "b", documents, vocab_size=20, eos_id=0, special=SpecialTokens(None, 0))
    first = write_shards(tmp_path / "c", documents, vocab_size=20, eos_id=0, special=SpecialTokens(0, 0))
    assert plain.fingerprint == same.fingerprint != first.fingerprint
    assert plain.special == SpecialTokens.before_policies(0) and not plain.special.text_is_text
    for saved in ({}, {"bos_id": True, "eos_id": 0, "text_is_text": True}, {"bos_id": 1, "eos_id": -1}, [1]):
        with pytest.raises((TypeError, ValueError)):
            SpecialTokens.from_json(saved)
    with pytest.raises(ValueError, match="say whether"):
        SpecialTokens.from_json({"bos_id": None, "eos_id": 0, "text_is_text": 1})


def test_a_model_alone_is_asked_as_it_was_trained(family: Any, tmp_path: Path) -> None:
    tokenizer, folder = family("a template in tokenizer.json")
    assert policy_of_model(tokenizer, str(folder), "llama").bos_id == 0  # from elsewhere: as its tokenizer does
    before = SpecialTokens.before_policies(1)
    assert policy_of_model(tokenizer, str(folder), "cocomix") == before
    (tmp_path / "stage.json").write_text("{}")
    assert policy_of_model(tokenizer, str(tmp_path / "model"), "llama") == before
    assert before.prompt(tokenizer, "road<|end_of_text|>")[-1] == 1  # as it was parsed in training
    snapshot = tmp_path / "snapshots" / "step-00000001"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"model_type": "llama"}')
    tokenizer.save_pretrained(tmp_path / "model")
    assert load_tokenizer(str(snapshot)).get_vocab() == tokenizer.get_vocab()
    assert policy_of_model(tokenizer, str(snapshot), "llama") == before
    damaged = load_tokenizer(str(folder))
    damaged.init_kwargs[SAVED] = json.loads('{"bos_id": "x"}')
    with pytest.raises(CocomixError, match="is damaged"):
        saved_with_tokenizer(damaged)
