"""lm-evaluation-harness on our models: equal to its own `hf` class, and to one forward pass a token."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from cocomix.data import load_tokenizer
from cocomix.evaluation.harness.model import CoCoMixLM
from cocomix.evaluation.harness.run import metrics, run_tasks
from cocomix.evaluation.harness.tasks import Tasks
from cocomix.utils.errors import CocomixError
from tests.helpers import harness_data
from tests.helpers.distributed_programs import launch

NAMES = ["lambada_openai", "wikitext", "hellaswag", "piqa", "social_iqa", "arc_easy", "winogrande"]
TWO_PROCESSES = """
import json, sys
from pathlib import Path
from tests.helpers import harness_data
from cocomix.evaluation.harness import CoCoMixLM, Tasks, run_tasks
from cocomix.data import load_tokenizer
from cocomix.utils.distributed import distributed_session
with distributed_session():
    model = CoCoMixLM(sys.argv[1], batch_size=2)
    tasks = Tasks(Path(sys.argv[2]), harness_data.small_index())
    for name in ("lambada_openai", "wikitext"):
        results = run_tasks(model, tasks, name)
        if results is not None:
            print(json.dumps(results["results"]))
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harness")
    harness_data.write_task_data(folder / "data")
    harness_data.gpt2(folder / "gpt2")
    harness_data.student(folder / "student")
    return folder


@pytest.fixture(scope="module")
def tasks(here: Path) -> Tasks:
    return Tasks(here / "data", harness_data.small_index())


def answers(results: dict | None, name: str) -> list[float]:
    """Every loglikelihood the harness was given, in the documents' order."""
    assert results is not None
    samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
    flat = [response for sample in samples for choice in sample["resps"] for response in choice]
    return [float(response[0] if isinstance(response, tuple) else response) for response in flat]


@pytest.fixture(scope="module")
def reference(here: Path, tasks: Tasks) -> dict:
    """Results of the harness's own `hf` model, one row at a time."""
    model = HFLM(str(here / "gpt2"), device="cpu", batch_size=1)
    loaded = [task for name in NAMES for task in tasks.load(name)["tasks"].values()]
    results = simple_evaluate(model=model, tasks=loaded, task_manager=tasks.manager)
    assert results is not None
    return dict(results)


@pytest.mark.parametrize(
    ("name", "batch_size"),
    [(name, 4) for name in NAMES] + [("wikitext", 1), ("hellaswag", 1), ("wikitext", "auto"), ("hellaswag", "auto")],
)
def test_a_plain_gpt2_scores_as_with_the_harnesss_own_hf_model(
    here: Path, tasks: Tasks, reference: dict, name: str, batch_size: int | str
) -> None:
    model = CoCoMixLM(here / "gpt2", batch_size=batch_size, max_batch_size=8)
    ours = run_tasks(model, tasks, name, log_samples=True)
    assert ours is not None
    assert answers(ours, name) == pytest.approx(answers(reference, name), abs=1e-5)
    assert len(answers(ours, name)) == len(answers(reference, name)) > 0
    for metric in metrics(ours):
        assert metric.value == pytest.approx(reference["results"][name][f"{metric.metric},none"], rel=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"backbone": "gpt2"},
        {"mixer": "keys_values"},
        {"mixer": "every", "mixer_options": {"every": 3}},
        {"channel": "ncp", "mixer": "add", "channel_options": {"chunk": 4, "segments": 2, "codes": 8, "layers": 1}},
    ],
    ids=str,
)
def test_a_students_loglikelihoods_equal_one_pass_a_token(tmp_path: Path, tasks: Tasks, settings: dict) -> None:
    folder = harness_data.student(tmp_path / "m", **settings)
    model, slow = CoCoMixLM(folder, batch_size=4), CoCoMixLM(folder, dtype="float64")
    for name in ["lambada_openai"] + ["hellaswag"] * (not settings):
        results = run_tasks(model, tasks, name, log_samples=True)
        assert results is not None
        for sample in results["samples"][name]:
            for (context, continuation), ((total, greedy),) in zip(sample["arguments"], sample["resps"], strict=True):
                slow_total, slow_greedy = harness_data.one_by_one(slow.model, slow.tokenizer, context, continuation)
                assert total == pytest.approx(slow_total, abs=1e-3, rel=1e-5) and greedy == slow_greedy


def test_rolling_windows_of_a_student_equal_one_pass_a_token(here: Path, tasks: Tasks) -> None:
    """Every token once, each window's first one from the token before it, as the harness cuts them."""
    results = run_tasks(CoCoMixLM(here / "student", batch_size=4), tasks, "wikitext", log_samples=True)
    model = CoCoMixLM(here / "student").model.double()
    tokenizer = load_tokenizer(str(here / "student"))
    slow = []
    for sample in results["samples"]["wikitext"] if results else []:
        ids, total = tokenizer.encode(sample["target"]), 0.0
        windows = get_rolling_token_windows(token_list=ids, prefix_token=0, max_seq_len=48, context_len=1)
        for context, continuation in map(make_disjoint_window, windows):
            for place in range(len(continuation)):
                with torch.no_grad():
                    logits = model(torch.tensor([context + continuation[:place]]), use_cache=False).logits[0, -1]
                total += float(logits.log_softmax(-1)[continuation[place]])
        slow.append(total)
    assert answers(results, "wikitext") == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize("settings", [{}, {"backbone": "gpt2", "mixer": "drop_tokens", "mixer_options": {"blocks": 1}}])
def test_generation_with_cache_and_padding_equals_one_pass_a_token(tmp_path: Path, settings: dict) -> None:
    folder = harness_data.student(tmp_path / "m", **settings)
    prompts = ["The farmer took bread", "Winter", "She asked him why the water was so"]
    requests = [Instance("generate_until", {}, (text, {"until": ["!"], "max_gen_toks": 9}), 0) for text in prompts]
    model = CoCoMixLM(folder, batch_size=3)
    texts = model.generate_until(requests, disable_tqdm=True)
    tokenizer = load_tokenizer(str(folder))
    for text, prompt in zip(texts, prompts, strict=True):
        ids = tokenizer.encode(prompt)
        start = len(ids)
        for _ in range(9):
            with torch.no_grad():
                ids.append(int(model.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            if tokenizer.decode(ids[-1]) in ("!", "<|endoftext|>"):
                break
        assert text == str(tokenizer.decode(ids[start:], skip_special_tokens=True)).partition("!")[0]


def test_two_processes_find_what_one_finds(here: Path, tasks: Tasks) -> None:
    script = here / "two.py"
    script.write_text(TWO_PROCESSES)
    done = launch(2, str(script), str(here / "student"), str(here / "data"))
    two = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(two) == 2
    for results in two:
        (name,) = results
        alone = run_tasks(CoCoMixLM(here / "student", batch_size=2), tasks, name)
        for metric in metrics(alone or {}):
            assert results[name][f"{metric.metric},none"] == pytest.approx(metric.value, rel=1e-5)


def test_the_harnesss_command_line_knows_the_model_type(
    here: Path, tasks: Tasks, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lm_eval.__main__ import cli_evaluate

    dataset = tasks._dataset_of("lambada_openai", tasks.manager.task_index["lambada_openai"].cfg or {})
    original = tasks.manager.task_index["lambada_openai"].yaml_path
    (here / "mine.yaml").write_text(yaml.safe_dump({"include": str(original), "task": "mine"} | dataset))
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda **_: harness_data.small_index())
    arguments = [
        "--model",
        "cocomix",
        "--model_args",
        f"pretrained={here / 'gpt2'}",
        "--tasks",
        str(here / "mine.yaml"),
    ]
    monkeypatch.setattr("sys.argv", ["lm_eval", "run", *arguments, "--device", "cuda:0"])
    cli_evaluate()
    assert "cocomix" in capsys.readouterr().out
    assert get_model("cocomix") is CoCoMixLM
    model = CoCoMixLM.create_from_arg_string(f"pretrained={here / 'student'},max_length=32", {"device": "cuda:0"})
    assert model.max_length == 32 and model.max_gen_toks == 16 and model.device.type in ("cpu", "cuda")


@pytest.mark.parametrize(
    ("name", "words"),
    [("lambada_openia", "lambada_openai"), ("copa", "not in .*super_glue")],
)
def test_unknown_tasks_and_missing_data_are_one_sentence(tasks: Tasks, name: str, words: str) -> None:
    with pytest.raises(CocomixError, match=words):
        tasks.load(name)


def test_data_without_the_split_a_task_names_is_one_sentence(tmp_path: Path, tasks: Tasks) -> None:
    harness_data.write_jsonl(tmp_path / "baber/piqa/validation.jsonl", harness_data.PIQA)
    other = Tasks(tmp_path, tasks.manager)
    with pytest.raises(CocomixError, match="no split 'train'"):
        other.load("piqa")
    (tmp_path / "baber/piqa/validation.jsonl").write_text("not json\n")
    with pytest.raises(CocomixError, match=r"data of the task piqa .*cannot be read"):
        other.load("piqa")
    assert str(tasks.manager.task_index["piqa"].yaml_path).endswith("piqa/piqa.yaml")


def test_bad_models_and_arguments_are_one_sentence(here: Path, tmp_path: Path) -> None:
    with pytest.raises(CocomixError, match="no such folder"):
        CoCoMixLM(tmp_path / "nowhere")
    with pytest.raises(CocomixError, match="no argument 'peft'"):
        CoCoMixLM(here / "student", peft="x")
    with pytest.raises(CocomixError, match="no task is named"):
        Tasks(here, harness_data.small_index()).check([])
