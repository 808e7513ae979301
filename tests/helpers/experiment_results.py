"""Raw results of a small experiment with chosen test losses, for the report's tests."""

from math import exp
from typing import Any

LABELLED = {"cocomix"}


def student(name: str, losses: dict[int, float], **figures: Any) -> dict[str, Any]:
    """A student with the given test loss by seed; validation loss is the same, and falls by 0.1 a quarter."""
    tokens, flops, label = figures.pop("tokens", 400), figures.pop("flops", 4e9), float(name in LABELLED)
    return {
        "name": name,
        "objective": "ntp" if name.startswith("ntp") else name,
        "about": f"what {name} is",
        "width": 32,
        "parameters": 1000,
        "label_rule": "exact/absolute" if label else None,
        "flops_per_token": flops / tokens,
        "runs": [_run(seed, loss, tokens, flops, label) for seed, loss in losses.items()],
    } | figures


def _run(seed: int, loss: float, tokens: float, flops: float, label: float) -> dict[str, Any]:
    quarters = [
        {
            "step": quarter,
            "tokens": tokens * quarter / 4,
            "flops": flops * quarter / 4,
            "seconds": 2.0 * quarter,
            "train_loss": 5.0,
            "val_perplexity": exp(loss + 0.1 * (4 - quarter)),
        }
        for quarter in range(1, 5)
    ]
    return {
        "seed": seed,
        "val_perplexity": exp(loss),
        "test_perplexity": exp(loss),
        "val_loss": loss,
        "test_loss": loss,
        "seconds": 8.0,
        "tokens": tokens,
        "flops": flops,
        "label_seconds": 4.0 * label,
        "label_flops": 1e9 * label,
        "recall": 0.3 if label else None,
        "recall_baseline": 0.1 if label else None,
        "curve": quarters,
    }


def setting(title: str, *students: dict[str, Any], **other: Any) -> dict[str, Any]:
    return {
        "title": title,
        "baseline": "ntp",
        "corpus": {"source": "sotu", "splits": {"train": {"documents": 1, "chars": 9, "tokens": 400}}},
        "teacher": {"description": "gpt2", "parameters": 10, "val_perplexity": None},
        "sae": {"n_latents": 8, "k": 2, "layer": 1, "explained_variance": 0.9, "l0": 2.0, "dead_share": 0.0},
        "labels": [
            {"name": "h", "rule": "exact", "sign": "absolute", "k": 2, "valid_share": 0.9}
            | {"seconds": 4.0, "flops": 1e9, "tokens_per_second": 9.0}
        ],
        "students": list(students),
        "timing": {},
        "steering": [],
    } | other


def experiment(claims: list[dict[str, Any]], frontier: tuple[str, ...] = (), **settings: Any) -> dict[str, Any]:
    return {
        "title": "A <script>alert(1)</script> grid",
        "created": "2026-01-01",
        "command": "cocomix experiment r.yaml",
        "commits": ["abc"],
        "notes": ["something a reader should know"],
        "machine": {"cpu": "x"},
        "baseline": "ntp",
        "seeds": [0, 1, 2],
        "frontier": list(frontier),
        "recipe": {"title": "grid"},
        "claims": claims,
        "settings": settings,
    }


def compare(number: int, *pairs: tuple[str, str], settings: tuple[str, ...]) -> dict[str, Any]:
    """A claim's comparisons (better, than), as dumped from an experiment's configuration."""
    made = [{"better": better, "than": than, "settings": list(settings)} for better, than in pairs]
    return {"id": number, "compare": made, "steering": []}
