"""Students never saw a beginning-of-text token in training, and every text at inference began with one (wikitext: two).

Reported as lm-evaluation-harness #1465, #2049, #2382 and #3333, SAELens #333, #472 and #724, h2o-llmstudio #636 and
unsloth #7903. One run with a tokenizer that puts `<s>` first; what every path gives to a model is recorded.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from cocomix.data import Document, load_tokenizer
from cocomix.data.tokenize import encode_documents, load_encoder
from cocomix.evaluation.perplexity import measure_perplexity
from cocomix.pipeline.config import load_config
from cocomix.pipeline.run import Run
from cocomix.pipeline.trained import export_sae, inspect_text
from cocomix.sae.formats import load_sae
from cocomix.steering.generate import continue_text
from cocomix.utils.errors import CocomixError

VOCAB, SEQ, BOS, EOS = 280, 24, 0, 1
CHECKS = {(0, 0), (0, 1, 2, 3), (1, 2, 3, 4, 5, 6), (4, 5, 6)}
"""Ids that are no text: what heads of models and the attention above a layer do with them is checked."""
TEXT = "the road </s> and the ship"
SMALL = "{width: 16, layers: 2, heads: 2}"


def llama_like(folder: Path) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the road and the ship are counted. "] * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return folder


def settings(home: Path, *more: str) -> Any:
    texts = [f"the road {number} and the ship are counted. <s> is no beginning" for number in range(60)]
    (home / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train = "{batch_size: 4, steps: 3, learning_rate: 0.01}"
    return load_config(
        Path(__file__).parents[2] / "src" / "cocomix" / "recipes" / "tiny.yaml",
        [
            f"corpus={{source: jsonl, options: {{path: {home / 'texts.jsonl'}}}, val_fraction: 0.1,"
            " test_fraction: 0.1}",
            f"tokens={{tokenizer: {home / 'tokenizer'}}}",
            f"seq_len={SEQ}",
            f"teacher={{model: {{backbone: llama, width: 16, layers: 2, heads: 2}}, train: {train}}}",
            f"sae={{layer: 0, n_latents: 32, k: 4, train: {train}}}",
            "labels={exact: {rule: exact, signs: [absolute], k: 2, batch_size: 4}}",
            f"students={{cocomix: {{objective: cocomix, labels: exact, model: {SMALL}, concept: {{concept_layer: 1}}}},"
            f" hidden: {{objective: hidden, model: {SMALL}, mix: {{concept_layer: 1}}}}}}",
            "baseline=cocomix",
            f"students_train={train}",
            "evaluation={windows: 6, curve_windows: 4, batch_size: 4, sae_windows: 8}",
            *more,
        ],
    )


@contextmanager
def fed() -> Iterator[list[list[int]]]:
    """Every row of token ids given to an embedding of the vocabulary; single tokens behind a cache aside."""
    rows: list[list[int]] = []

    def record(module: nn.Module, inputs: Any) -> None:
        if isinstance(module, nn.Embedding) and module.num_embeddings == VOCAB and inputs[0].shape[-1] > 1:
            rows.extend(inputs[0].tolist())

    handle = register_module_forward_pre_hook(record)
    try:
        yield rows
    finally:
        handle.remove()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    home = tmp_path_factory.mktemp("bos")
    llama_like(home / "tokenizer")
    run = Run(home / "run", settings(home))
    for name in ("corpus", "tokens"):
        run.run_stage(name)
    return run


@pytest.fixture(scope="module")
def rows(run: Run) -> dict[str, list[list[int]]]:
    """What each stage gave to models."""
    recorded = {}
    for stage in (run.teacher, run.sae, *run.labels.values(), *run.students, *run.evaluations):
        with fed() as rows:
            run.do(stage, stage.name)  # type: ignore[arg-type]
        recorded[stage.name] = rows  # type: ignore[union-attr]
    return recorded


def test_the_report(tmp_path: Path) -> None:
    folder = llama_like(tmp_path / "tokenizer")
    trained = next(encode_documents(load_encoder(folder, VOCAB, EOS), [Document("a", "the road")])).tolist()
    asked = load_tokenizer(str(folder)).encode("the road")
    assert trained == [*asked, EOS] and asked[0] == BOS


def test_every_stage_reads_windows_that_begin_with_bos(run: Run, rows: dict[str, list[list[int]]]) -> None:
    windows = {
        tuple(window)
        for split in ("train", "val", "test")
        for shards in [run.tokens.shards(split)]
        for window in shards.windows(range(shards.n_windows(SEQ)), SEQ).tolist()
    }
    assert set(rows) == {"teacher", "sae", "labels/exact"} | {
        f"{kind}/{name}/seed0" for kind in ("students", "evaluation") for name in ("cocomix", "hidden")
    }
    for stage, given in rows.items():
        assert given, stage
        full = [row for row in given if tuple(row) not in CHECKS]
        assert full, stage
        assert {len(row) for row in full} == {SEQ}, stage
        assert {tuple(row) for row in full} <= windows, stage
        for row in full:
            assert row[0] == BOS
            assert all(row[place - 1] == EOS for place, token in enumerate(row) if place and token == BOS)


def test_the_first_position_has_no_labels_and_trains_no_autoencoder(run: Run, rows: Any) -> None:
    labels = run.labels["exact"].reader("train", "absolute")
    shards = run.tokens.shards("train")
    ids = labels.read(torch.arange(shards.n_windows(SEQ)).numpy(), SEQ)
    assert (ids[:, 0] == -100).all() and (ids[:, 1:-1] >= 0).any()
    n_windows = min(8, run.tokens.shards("val").n_windows(SEQ))
    assert run.sae.figures["measured_tokens"] == n_windows * (SEQ - 1)


def test_inference_reads_what_training_read(run: Run, rows: Any, tmp_path: Path) -> None:
    student = run.students[0]
    folder = str(student.folder / "model")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    (document,) = (
        ids.tolist()
        for ids in encode_documents(load_encoder(Path(folder), VOCAB, EOS, run.tokens.special), [Document("", TEXT)])
    )
    prompt = document[:-1]
    assert prompt[0] == BOS and document[-1] == EOS and prompt[1:].count(EOS) == 0
    assert tokenizer("the road")["input_ids"] == run.tokens.special.prompt(tokenizer, "the road")

    with fed() as generated:
        assert continue_text(folder, TEXT, max_new_tokens=2, temperature=0, seed=0).startswith(TEXT)
    assert generated[0] == prompt
    with fed() as empty:
        continue_text(folder, "", max_new_tokens=2, temperature=0, seed=0)
    assert all(row[0] == BOS for row in empty)
    with fed() as inspected:
        reading = inspect_text(run.folder, TEXT, student="cocomix", seed=0, top=2, concept=None)
    assert prompt in inspected and all(row == prompt for row in inspected if len(row) == len(prompt))
    assert [token.id for token in reading.tokens] == prompt and reading.tokens[0].labels is None
    assert reading.tokens[1].labels is not None
    (tmp_path / "text.txt").write_text(TEXT)
    options = {"batch_size": 1, "precision": "fp32", "field": "text"}
    with fed() as measured:
        text = tmp_path / "text.txt"
        figures = measure_perplexity(folder, text, seq_len=len(document), stride=None, max_windows=None, **options)  # type: ignore
        strided = measure_perplexity(folder, text, seq_len=8, stride=3, max_windows=None, **options)  # type: ignore
    assert measured[0] == document and all(row[0] == BOS for row in measured)
    assert figures["tokens"] == strided["tokens"] == len(document) - 1


def test_the_explorer_reads_the_same(run: Run, rows: Any) -> None:
    pytest.importorskip("starlette")
    from cocomix.explorer.sessions import ModelSession, RunSession

    opened = RunSession(run.folder, 0)
    stage = opened.run.students[0]
    session = ModelSession(opened, stage, stage.folder / "model", predicts_concepts=True)
    assert session.encode(TEXT) == run.tokens.special.prompt(session.tokenizer, TEXT)
    assert session.read(TEXT, concept=None, top=2).tokens[0].labels is None
    assert all("<s>the" not in example and "</s>" not in example for example in opened.examples())


def test_the_harness_puts_bos_first_exactly_once(run: Run, rows: Any) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from cocomix.evaluation.harness.model import CoCoMixLM

    model = CoCoMixLM(run.students[0].folder / "model", batch_size=1)
    tokenizer, special = model.tokenizer, run.tokens.special
    prompt = special.prompt(tokenizer, TEXT)
    assert model.tok_encode(TEXT) == model.tok_encode("<s>" + TEXT) == prompt
    assert model.tok_encode(TEXT, add_special_tokens=False) == prompt[1:]
    assert model.tok_encode(TEXT, left_truncate_len=3) == [BOS, *prompt[-2:]]
    assert model.tok_batch_encode([TEXT])[0].tolist() == [prompt]

    def requests(kind: Any, *arguments: Any) -> list[Any]:
        return [Instance(kind, {}, arguments, 0)]

    with fed() as scored:
        model.loglikelihood(requests("loglikelihood", "the road", " and"))
        model.loglikelihood(requests("loglikelihood", "", "the road"))
        model.loglikelihood(requests("loglikelihood", "the road and " * 10, " the ship"))
    assert scored[0] == special.prompt(tokenizer, "the road and")[:-1]
    with fed() as rolled:
        model.loglikelihood_rolling(requests("loglikelihood_rolling", "the road and the ship are counted. " * 6))
    whole = special.texts(tokenizer, ["the road and the ship are counted. " * 6])[0]
    assert len(whole) > 2 * SEQ and max(map(len, rolled)) <= SEQ
    with fed() as generated:
        model.generate_until(requests("generate_until", "the road and " * 10, {"max_gen_toks": 2, "until": ["\n"]}))
    for row in [*scored, *rolled, *generated]:
        assert row[0] == BOS and BOS not in row[1:]


def test_an_autoencoder_of_other_windows_is_refused(run: Run, rows: Any, tmp_path: Path) -> None:
    saved = load_sae(run.sae.folder / "model", layer=0, d_model=16, k=4)
    assert (saved.prepend_bos, saved.context_size) == (True, SEQ)
    export_sae(run, "saelens", tmp_path / "saelens")
    config = json.loads((tmp_path / "saelens" / "cfg.json").read_text())
    assert config["metadata"]["prepend_bos"] is True and config["metadata"]["context_size"] == SEQ
    run.sae._check_bos("gpt2-sae", True)
    run.sae._check_bos("gpt2-sae", None)
    config["metadata"]["prepend_bos"] = False
    (tmp_path / "saelens" / "cfg.json").write_text(json.dumps(config))
    loaded = load_sae(tmp_path / "saelens", layer=0, d_model=16, k=4)
    with pytest.raises(CocomixError, match=r"without a beginning-of-text token first .* set tokens.bos=false"):
        run.sae._check_bos("gpt2-sae", loaded.prepend_bos)
    config["metadata"]["prepend_bos"] = "yes"
    (tmp_path / "saelens" / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(CocomixError, match="prepend_bos is 'yes'"):
        load_sae(tmp_path / "saelens", layer=0, d_model=16, k=4)


def test_a_setting_takes_bos_away_and_the_saved_tokenizer_with_it(run: Run, rows: Any, tmp_path: Path) -> None:
    home = run.folder.parent
    other = Run(
        tmp_path / "run", settings(home, "tokens.bos=false", f"teacher={{pretrained: {run.folder}/teacher/model}}")
    )
    for name in ("corpus", "tokens"):
        other.run_stage(name)
    assert other.tokens.special.bos_id is None
    tokenizer = other.tokens.tokenizer()
    assert BOS not in other.tokens.shards("train").windows([0, 1], SEQ)
    assert BOS not in tokenizer("the road")["input_ids"]
    with pytest.raises(CocomixError, match=r"trained with a beginning-of-text token first .* set tokens.bos=true"):
        other.run_stage("teacher")
    with pytest.raises(CocomixError, match="give the text instead"):
        measure_perplexity(
            str(run.students[0].folder / "model"), other.tokens.folder / "val", seq_len=8, stride=None, batch_size=1,
            max_windows=None, precision="fp32", field="text",
        )  # fmt: skip
    assert other.tokens.fingerprint != run.tokens.fingerprint


def test_weights_alone_say_what_a_text_begins_with(run: Run, rows: Any) -> None:
    """Transformers' own `generate` without a prompt begins as training did."""
    model: Any = AutoModelForCausalLM.from_pretrained(run.students[0].folder / "model")
    assert (model.config.bos_token_id, model.config.eos_token_id) == (BOS, EOS)
    assert load_file(run.students[0].folder / "model" / "model.safetensors")
