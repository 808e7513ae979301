"""The model card: metadata for the hub, how to load the model, and its lineage as tables."""

from typing import Any

from cocomix.hub_facts import Rows

LOADING = """```python
{imports}from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{repo}")
tokenizer = AutoTokenizer.from_pretrained("{repo}")
ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=40)[0]))
```"""
OWN = """The architecture is not part of Transformers: the Python package `cocomix` must be installed, and importing it
registers the architecture. This repository holds no code, and `trust_remote_code` is neither needed nor of use."""
PLAIN = "A plain Transformers model: nothing else is needed to load it."


def model_card(
    *,
    repo: str,
    own_architecture: bool,
    sections: dict[str, Rows],
    measured: list[dict[str, Any]],
    config: str,
    licence: str | None,
) -> str:
    """The README.md of a model's repository.

    Args:
        repo: USER/NAME, as the loading example shows it.
        own_architecture: whether loading needs `import cocomix`.
        sections: lineage, rows of (what, value) by heading.
        measured: `{dataset, split, metric, value, stderr}` each.
        config: the student's settings as YAML.
        licence: the hub's licence id; None: the card says that none was stated.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    name = repo.rpartition("/")[2]
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=one["dataset"],
            dataset_name=f"{one['dataset']} ({one['split']})",
            dataset_split=one["split"],  # the hub tells figures on one dataset apart by it
            metric_type=one["metric"],
            metric_value=one["value"],
        )
        for one in measured
    ]
    data = ModelCardData(
        license=licence,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["cocomix"] if own_architecture else ["cocomix", "baseline"],
        model_name=name,
        eval_results=results or None,
    )
    parts = [f"# {name}", OWN if own_architecture else PLAIN]
    imports = "import cocomix  # registers the architecture\n" if own_architecture else ""
    parts.append(LOADING.format(repo=repo, imports=imports))
    for heading, rows in sections.items():
        parts += [f"## {heading}", _table(("", ""), rows)]
    if measured:
        shown = [(f"{one['dataset']} ({one['split']})", one["metric"], _value(one)) for one in measured]
        parts += ["## Measured", _table(("on", "metric", "value"), shown)]
    parts += ["## Settings of the student", f"```yaml\n{config.strip()}\n```"]
    if licence is None:
        parts += ["## Licence", "The one who pushed this model stated none."]
    parts.append("Every figure above comes from the records of the run that made this model.")
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"))


def _value(one: dict[str, Any]) -> str:
    return f"{one['value']:.4f}" + ("" if one["stderr"] is None else f" ± {one['stderr']:.4f}")


def _table(headings: tuple[str, ...], rows: Any) -> str:
    lines = [headings, tuple("---" for _ in headings), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
