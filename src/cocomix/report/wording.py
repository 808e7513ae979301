"""The headline in plain words, whichever way it came out."""

from typing import Any


def headline(results: dict[str, Any], derived: dict[str, Any]) -> list[str]:
    """One sentence for each concept student and each next-token student it is compared with."""
    sentences = []
    labels = {student["name"]: student for student in results["students"]}
    for name, student in labels.items():
        if student["objective"] == "ntp":
            continue
        for other, difference in derived["students"][name]["difference"].items():
            sentences.append(_compare(name, other, labels, derived, difference["test_perplexity"]))
    return sentences


def held_equal(student: dict[str, Any], other: dict[str, Any]) -> str:
    """What a comparison of two students holds equal besides tokens, read off the models themselves."""
    if student["width"] == other["width"]:
        return "equal width"
    ours, theirs = student["parameters"], other["parameters"]
    share = abs(ours - theirs) / max(ours, theirs)
    return f"equal parameters (within {max(share, 0.001):.1%})" if share < 0.1 else "unequal width and parameters"


def _compare(
    name: str, other: str, students: dict[str, Any], derived: dict[str, Any], difference: dict[str, Any]
) -> str:
    ours = derived["students"][name]["test_perplexity"]["mean"]
    theirs = derived["students"][other]["test_perplexity"]["mean"]
    equal = held_equal(students[name], students[other])
    word = "lower" if difference["mean"] < 0 else "higher"
    spread = "" if difference["ci95"] is None else f" ± {difference['ci95']:.2f}"
    verdict = {
        "better": "a gain beyond the spread of seeds",
        "worse": "a loss beyond the spread of seeds",
        "undecided": "not decided by " + ("one seed" if difference["n"] == 1 else f"these {difference['n']} seeds"),
    }[difference["verdict"]]
    cost = derived["students"][name]["to_same_perplexity"][other]
    if cost["tokens"] is None:
        reach = f"It reached {other}'s final validation perplexity in {cost['reached']} of {cost['seeds']} runs."
    else:
        reach = (
            f"It reached {other}'s final validation perplexity with {cost['tokens']:.2f}x the tokens,"
            f" {cost['flops_with_labels']:.2f}x the FLOPs and {cost['seconds_with_labels']:.2f}x the seconds,"
            " labels included."
        )
    return (
        f"At equal tokens and {equal}, {name} has test perplexity {ours:.1f} against {theirs:.1f} of {other}:"
        f" {abs(difference['mean']):.2f}{spread} {word}, {verdict}. {reach}"
    )
