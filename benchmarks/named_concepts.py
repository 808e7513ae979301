"""Ten named concepts of a run with passages, picked by a rule: does a person recognise what they stand for?

    python -m benchmarks.named_concepts --run runs/smollm2 -o results/smollm2/concepts.md

The rule: among the concepts that `cocomix name` gave a name of three tokens or more (two halves of the text agree on
them), active at one position in two thousand to one in a hundred, those whose first three tokens are words of six
letters or more that begin differently; of these the ten with the highest stability. Nothing is picked by hand. The
passages are the two strongest places of each in the text that the names are from.
"""

import argparse
import re
from pathlib import Path

from cocomix.analysis.naming import ConceptName, read_names
from cocomix.pipeline.config import load_config
from cocomix.pipeline.run import Run
from cocomix.utils.files import write_text

RAREST, MOST_FREQUENT = 1 / 2000, 1 / 100
WORD = re.compile(r" [A-Za-z]{6,}")
BEGINNING = 5
"""Characters, with the space, in which words begin differently."""
SHOWN, PASSAGES = 10, 2


def qualifies(concept: ConceptName) -> bool:
    """Whether a concept meets the rule but for its rank."""
    tokens = [one.token for one in concept.tokens[:3]]
    words = len(tokens) == 3 and all(WORD.fullmatch(token) for token in tokens)
    different = len({token[:BEGINNING].lower() for token in tokens}) == 3
    return concept.name is not None and RAREST <= concept.share <= MOST_FREQUENT and words and different


def page(found: list[ConceptName], title: str, positions: int) -> str:
    """The page: a line a concept, then its passages."""
    chosen = sorted(filter(qualifies, found), key=lambda one: (-one.stability, one.concept))
    lines = [
        f"# Ten concepts: {title}",
        "",
        "Written by `python -m benchmarks.named_concepts`, whose first lines state the rule by which they are picked:"
        f" the ten most stable of {sum(map(qualifies, found))} concepts that qualify, of {len(found)}; names from"
        f" {positions:,} positions of the training text. Share: of positions at which it is active. Stability: how far"
        " two halves of the text agree on its tokens.",
    ]
    for one in chosen[:SHOWN]:
        tokens = ", ".join(f"`{token.token.strip()}`" for token in one.tokens[:6])
        lines += ["", f"**{one.concept}: {tokens}** (share {one.share:.2%}, stability {one.stability:.2f})", ""]
        for place in one.passages[:PASSAGES]:
            text = f"{place.before}**{place.token.strip()}**{place.after}"
            if place.token.startswith(" "):
                text = f"{place.before} **{place.token.strip()}**{place.after}"
            lines.append(f"- … {' '.join(text.split())} …")
    return "\n".join([*lines, ""])


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description="Ten named concepts of a run with passages, picked by a rule.")
    parser.add_argument("--run", type=Path, required=True, help="folder of a run whose concepts have names")
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    run = Run(options.run, load_config(options.run / "config.yaml"))
    names = read_names(options.run, run.sae.checksum()).found
    if names is None:
        raise SystemExit(f"the concepts of {options.run} have no names; run `cocomix name -r {options.run}` first")
    write_text(options.out, page(list(names.concepts), run.config.title, names.positions))


if __name__ == "__main__":
    main()
