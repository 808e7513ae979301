"""The README and docs/results.md are true: their tables are those of the committed reports, and the Python runs."""

import json
import math
import re
import statistics
from pathlib import Path

import pytest
from rich.console import Console

from cocomix.experiments.report import console_summary
from cocomix.report import summary_table
from cocomix.report.tables import steering_table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs/results.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["demo", "demo-pack", "rules"])
def test_tables_are_the_ones_printed(name: str) -> None:
    report = json.loads((ROOT / "results" / name / "report.json").read_text(encoding="utf-8"))
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summary_table(report))
    printed = "\n".join(line.rstrip() for line in console.export_text().splitlines()).strip("\n")
    assert f"```text\n{printed}\n```" in RESULTS


def test_the_claims_are_the_ones_printed() -> None:
    report = json.loads((ROOT / "results" / "cpu" / "report.json").read_text(encoding="utf-8"))
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(console_summary(report))
    printed = "\n".join(line.rstrip() for line in console.export_text().splitlines()).strip("\n")
    assert f"```text\n{printed}\n```" in RESULTS
    claims, legend, _ = printed.partition("positive is\nbetter.")
    assert f"```text\n{claims}{legend}\n```" in README


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200


def test_the_steering_table_is_the_one_printed() -> None:
    report = json.loads((ROOT / "results" / "steering" / "report.json").read_text(encoding="utf-8"))
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(steering_table(report).renderables[0])
    printed = "\n".join(line.rstrip() for line in console.export_text().splitlines()).strip("\n")
    assert f"```text\n{printed}\n```" in RESULTS


def test_what_it_withstands_is_what_was_found() -> None:
    faults, fuzzed, twice = (
        json.loads((ROOT / "results" / name).read_text(encoding="utf-8"))
        for name in ("faults/report.json", "fuzz.json", "determinism/demo.json")
    )
    assert set(faults["counts"]) == {"resumed-identical", "refused"} and len(faults["faults"]) >= 200
    again = twice["runs"]["again"]
    said = [
        f"**{len(faults['faults'])} faults**",
        f"after {faults['counts']['resumed-identical']} the same command ended in the same bits",
        f"after {faults['counts']['refused']} it said",
        f"{faults['lost']} finished stages were lost",
        f"**{fuzzed['inputs']:,} hostile inputs** to {len(fuzzed['readers'])} readers",
        f"{again['equal']} of {again['figures']} figures",
    ]
    flat = " ".join(RESULTS.split())
    assert [words for words in said if words not in flat] == []
    assert [fuzzed["counts"][outcome] for outcome in ("crashed", "hung", "memory", "escaped")] == [0, 0, 0, 0]


def test_the_explorer_is_as_quick_as_was_measured() -> None:
    report = json.loads((ROOT / "results/explorer/latency.json").read_text(encoding="utf-8"))
    taken = {name: found["median"] for name, found in report["milliseconds"].items()}
    flat = " ".join(RESULTS.split())
    assert f"{taken['panel of a token, from click to picture']:.0f} ms after the click" in flat
    assert f"with a concept ablated after {taken['reading a new text, a concept ablated']:.0f} ms" in flat


@pytest.mark.slow
def test_the_library_example_runs(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    monkeypatch.chdir(tiny)
    names: dict = {}
    for here, there in {
        "runs/retrofit/students/retrofit": "runs/tiny/students/cocomix",
        "runs/retrofit": "runs/tiny",
        "layer=14": "layer=1",
        "4714": "12",
    }.items():
        assert here in program
        program = program.replace(here, there)
    exec(program, names)
    assert names["loss"].isfinite() and names["labels"].ids.shape[-1] == 4


def test_every_link_to_a_file_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)", README)
    assert links and all((ROOT / link).exists() for link in links if not link.startswith("http"))


def test_what_the_page_says_of_smollm2_was_measured() -> None:
    sae, exact = (json.loads((ROOT / f"results/smollm2/{name}.json").read_text()) for name in ("sae", "exact"))
    figures, labels = sae["figures"], exact["labels"]
    page = " ".join((ROOT / "docs/howto/teacher.md").read_text(encoding="utf-8").split())
    assert f"C = {figures['n_latents']}, K = {figures['k']}, {figures['tokens'] / 1e6:.2f} M tokens" in page
    assert f"loss recovered {figures['loss_recovered']:.3f}, explained variance" in page
    assert f"explained variance {figures['explained_variance']:.3f}," in page
    assert f"{round(figures['dead_share'] * figures['n_latents'])} dead latent." in page
    assert exact["relative_difference"] < 2e-15 and all(one["same"] == 1 for one in labels["fp32"].values())
    assert [round(one["shared"], 2) for one in labels["bf16"].values()] == [0.96] * 3


def test_what_the_page_says_of_the_pack_is_in_it() -> None:
    pack = json.loads((ROOT / "packs/smollm2-135m/pack.json").read_text())
    page = " ".join((ROOT / "docs/howto/packs.md").read_text(encoding="utf-8").split())
    for corpus in pack["corpora"]:
        shares = (f"{100 * corpus['splits'][split]['covered_share']:.1f} %" for split in ("train", "val"))
        (row,) = re.findall(rf"\| `{corpus['name']}` \|.*? \| ([\d.]+ %) \| ([\d.]+ %) \|", page)
        assert [float(share.split()[0]) for share in row] == [float(share.split()[0]) for share in shares]
    own, other = (
        json.loads((ROOT / f"results/smollm2/{name}.json").read_text())["figures"] for name in ("sae", "sae_networkx")
    )
    for name, words in (("explained_variance", "explains"), ("loss_recovered", "recovers")):
        assert f"{words} {other[name]:.2f} of the" in page and f"in place of {own[name]:.2f}" in page
    size = sum(path.stat().st_size for path in (ROOT / "packs").rglob("*") if path.is_file())
    assert size <= 40e6 and "(40 MB)" in page
    verified = (ROOT / "results/smollm2/verify.txt").read_text(encoding="utf-8")
    same = [float(share) for share in re.findall(r"positions ([\d.]+)% are", verified) if float(share) < 95]
    assert page.count("84 to 86 %") == 1 and min(same) >= 84 and max(same) < 86.5


def test_the_table_of_slots_and_labels_was_measured() -> None:
    found = {row["variant"]: row for row in json.loads((ROOT / "results/mixing/report.json").read_text())["variants"]}
    table = RESULTS.split("## Slots, scales, labels and controls")[1].split("\n\n- ")[0]
    said = {line.split("`")[1]: line for line in table.splitlines() if line.startswith("| `")}
    assert set(said) == set(found)
    for name, row in found.items():
        assert f"| {row['test_perplexity']:.2f} |" in said[name] and f"| {row['step_ratio']:.2f} |" in said[name]
        if name != "ntp":
            low, high = row["vs_baseline_ci95"]
            assert f"| {row['vs_baseline']:+.3f} [{low:+.3f}, {high:+.3f}] |" in said[name]
        if row["channel_zero"] is not None:
            assert f"| {row['channel_zero']:+.2f} |" in said[name]
    setting = json.loads((ROOT / "results/mixing/report.json").read_text())["settings"]["strong"]
    losses = {one["name"]: [math.log(run["test_perplexity"]) for run in one["runs"]] for one in setting["students"]}
    for control in ("residual_hash", "residual_hash_next", "residual_random"):
        pairs = zip(losses[control], losses["residual_absolute_scaled"], strict=True)
        more = [other - best for other, best in pairs]
        half = 4.303 * statistics.stdev(more) / math.sqrt(3)  # Student's t, 2 degrees of freedom
        low, high = statistics.mean(more) - half, statistics.mean(more) + half
        if control == "residual_hash":
            assert f"{statistics.mean(more):.3f} [{low:.3f}, {high:.3f}] more than" in " ".join(RESULTS.split())
        else:
            assert low < 0 < high


def test_what_the_page_says_of_the_retrofitted_model_was_measured() -> None:
    folder, flat = ROOT / "results/retrofit", " ".join(RESULTS.split())
    for part in (folder, folder / "rows"):
        rows = [row.split() for row in (part / "table.txt").read_text(encoding="utf-8").splitlines()]
        for row in rows:
            if {"retrofitted", "fine-tuned", "as"} & set(row[:1]):
                for figure in row[1 if row[0] != "as" else 3 :]:
                    said = f"{float(figure):.3f}" if figure.replace(".", "").isdigit() else figure
                    assert said in flat, figure
        report = json.loads((part / "report.json").read_text(encoding="utf-8"))
        for student in report["students"]:
            if (channel := student["runs"][0]["channel"]) is not None:
                zero, labels = (channel["variants"][name]["difference"] for name in ("zero", "labels"))
                assert f"| {zero:+.3f} | {labels:+.3f} |" in flat
    printed = (folder / "training.txt").read_text(encoding="utf-8")
    for student in ("retrofit", "finetuned"):
        first, second, third = re.findall(rf"students/{student}/seed\d: .* validation perplexity ([\d.]+)", printed)
        assert f"{first}, {second} and {third}" in flat
    measured = json.loads((folder / "latency.json").read_text())
    assert f"each at {measured['tokens_per_second']['median']:.1f} tokens a second" in flat
    taken = {name: found["median"] for name, found in measured["milliseconds"].items()}
    assert f"panel after {taken['panel of a token, from click to picture']:.0f} ms" in flat
    assert f"ablated in {taken['reading a new text, a concept ablated'] / 1000:.1f} s" in flat


def test_what_the_page_says_of_steering_it_was_measured() -> None:
    report = json.loads((ROOT / "results/steering/smollm2/report.json").read_text(encoding="utf-8"))
    lines = {
        line.split()[0]: line.split()
        for line in RESULTS.split("Steering retrofit, measured")[1].split("```")[0].splitlines()
        if line.strip()
    }
    for name, method in report["methods"].items():
        areas = [method["area"][gain] for gain in ("presence", "words", "follow")]
        expected = [
            word
            for area in areas
            for word in (f"{100 * area['mean']:.1f}", f"({100 * area['low']:.1f}–{100 * area['high']:.1f})")
        ]
        assert lines[name][1:7] == expected
        best = next((dose for dose in method["doses"] if dose["dose"] == method["best"]), None)
        gain = (
            ["–"] * 3
            if best is None
            else [f"{best['dose']:g}", f"{100 * best['presence']['mean']:.1f}", f"{best['fluency_loss']['mean']:+.2f}"]
        )
        assert lines[name][7:] == gain
    verdicts = {(one["than"], one["figure"]): one["verdict"] for one in report["differences"]}
    assert all(verdicts["residual", gain] == "better" for gain in ("presence", "words", "follow"))
    assert verdicts["residual_ntp", "presence"] == "better"
    assert all(verdicts["residual_ntp", gain] == "undecided" for gain in ("words", "follow"))
    assert all(verdicts["rows", gain] == "undecided" for gain in ("presence", "words", "follow"))
