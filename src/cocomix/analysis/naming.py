"""Names of concepts: made from what was counted, none where two halves of the text would not give the same one.

On disk, `names.json` holds what was found and `names-edited.json` what people call concepts. They are two files, so
that finding names again never touches an edit. Both belong to one autoencoder, by its checksum: after it was trained
again concept 12 is another concept. Edits are kept under the checksum they were made for, so they are back when that
autoencoder is.

A user's program can give names instead (`name_with`): it reads a concept's passages as JSON and prints a name. It is
started for each concept, never through a shell, and killed with whatever it started when its time is up. What goes
wrong leaves the automatic name; after a few failures in a row the program is not started again.
"""

import contextlib
import json
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock
from pydantic import BaseModel, Field, ValidationError

from cocomix.analysis.token_statistics import ITSELF, NEXT, Occurrences, agreement, best_tokens, contrast_scores
from cocomix.data.shards import TokenShards
from cocomix.utils.advice import command_line, delete
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import read_json, write_json, write_text

FOUND, EDITED, EDITS_LOCK = "names.json", "names-edited.json", ".locks/names-edited.lock"


class TokenScore(BaseModel):
    """A token that distinguishes a concept."""

    token: str
    score: float = Field(description="nats it adds to the divergence of the concept's tokens from all tokens")


class Passage(BaseModel):
    """A place where a concept is most active."""

    before: str
    token: str
    after: str
    activation: float


class ConceptName(BaseModel):
    """One concept, what it is called, and why."""

    concept: int
    name: str | None = Field(default=None, description="null where none would be honest; see `why`")
    source: Literal["tokens", "llm", "edited"] | None = None
    edited: bool = False
    why: str = Field(default="", description="why there is no name")
    occurrences: int = Field(default=0, description="positions at which it is active")
    share: float = Field(default=0.0, description="of all positions seen")
    stability: float | None = Field(default=None, description="0 to 1: do two halves of the text name it alike")
    coverage: float | None = Field(
        default=None, description="share of its positions at which a token of an automatic name is"
    )
    kind: Literal["token", "next"] = Field(default="token", description="which tokens tell it apart")
    tokens: list[TokenScore] = Field(default_factory=list, description="tokens it is active at, best first")
    next_tokens: list[TokenScore] = Field(default_factory=list, description="tokens after those, best first")
    passages: list[Passage] = Field(default_factory=list, description="strongest first, at most one a window")


class FoundNames(BaseModel):
    """All concepts of one autoencoder, as found in some text."""

    format: Literal[1] = 1
    sae: str = Field(description="checksum of the autoencoder's weights")
    tokens: str = Field(description="checksum of the token shards")
    split: str
    windows: int
    positions: int
    concepts: list[ConceptName] = Field(description="in order, all C of them")


class Names:
    """Names of a run's concepts, edits first; empty where none were made for this autoencoder."""

    def __init__(self, found: FoundNames | None, edits: dict[int, str]) -> None:
        self.found, self.edits = found, edits

    def of(self, concept: int) -> ConceptName:
        """What is known of `concept`; a bare record where nothing is."""
        concepts = [] if self.found is None else self.found.concepts
        known = concepts[concept] if 0 <= concept < len(concepts) else ConceptName(concept=concept)
        if concept not in self.edits:
            return known
        edit = {"name": self.edits[concept], "source": "edited", "edited": True, "why": "", "coverage": None}
        return known.model_copy(update=edit)

    def name(self, concept: int) -> str | None:
        """Its name, if it has one."""
        return self.of(concept).name


def read_names(folder: Path, sae: str, file: str = FOUND) -> Names:
    """Names kept in the run `folder` for the autoencoder with checksum `sae`.

    Args:
        file: where they were written.

    Raises:
        CocomixError: a file is damaged.
    """
    path, found = folder / file, None
    if path.exists():
        try:
            found = FoundNames.model_validate_json(path.read_text(encoding="utf-8"))
        except (ValidationError, UnicodeDecodeError) as error:
            raise CocomixError(
                f"{path} is damaged; {delete(path)} and run {command_line('cocomix name', folder)} again"
            ) from error
    return with_edits(folder, sae, found if found is not None and found.sae == sae else None)


def with_edits(folder: Path, sae: str, found: FoundNames | None) -> Names:
    """`read_names` where the found names are known already.

    Raises:
        CocomixError: the file of edits is damaged.
    """
    return Names(found, {int(concept): name for concept, name in _edits(folder).get(sae, {}).items()})


def write_found(folder: Path, found: FoundNames, file: str = FOUND) -> None:
    """Replace the names found before; edits stay."""
    write_text(folder / file, found.model_dump_json(indent=1), durable=True)


def edit_name(folder: Path, sae: str, concept: int, name: str) -> None:
    """Call `concept` `name` from now on; an empty name removes the edit.

    Raises:
        CocomixError: the file of edits is damaged.
    """
    lock = folder / EDITS_LOCK
    lock.parent.mkdir(exist_ok=True)
    with FileLock(lock, fallback_to_soft=False):  # several explorers and commands may edit at the same time
        edits = _edits(folder)
        names = edits.setdefault(sae, {})
        if name.strip():
            names[str(concept)] = name.strip()
        else:
            names.pop(str(concept), None)
        write_json(folder / EDITED, {"format": 1, "edited": edits}, durable=True)


def _edits(folder: Path) -> dict[str, Any]:
    """Names by concept by checksum of the autoencoder."""
    path = folder / EDITED
    if not path.exists():
        return {}
    try:
        edits = read_json(path)["edited"]
        return {sae: {str(int(c)): str(name) for c, name in names.items()} for sae, names in edits.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CocomixError(f"{path} is damaged; fix it by hand, or delete it and lose its edits") from error


FEWEST = 10
"""Positions in each half below which nothing is said about a concept."""
STABLE = 0.5
"""Agreement of the two halves from which a name is given."""
LISTED, IN_A_NAME, OF_THE_BEST = 10, 3, 0.2
"""Tokens kept of each concept; tokens in a name at most; share of the first one's score that the others must reach."""
BEFORE, AFTER = 12, 6
"""Tokens of a passage before and after the one the concept is active at."""


def name_concepts(
    seen: Occurrences, decode: Callable[[Sequence[int]], str], shards: TokenShards | None = None, seq_len: int = 0
) -> list[ConceptName]:
    """A record of each concept, in order.

    Args:
        decode: text of token ids.
        shards: where windows of `seq_len` tokens were read from; without, no passages are given.
    """
    n, texts = seen.n_concepts, _Texts(decode)
    counts = seen.counts()
    tokens, scores, stable, shares = {}, {}, {}, {}
    for kind, (first, second) in seen.halves.items():
        both = first + second
        tokens[kind], scores[kind] = best_tokens(contrast_scores(both), LISTED)
        met = both.at(np.arange(n)[:, None], tokens[kind].clip(min=0)) * (tokens[kind] >= 0)
        shares[kind] = met / both.concepts().clip(min=1)[:, None]
        stable[kind] = agreement(contrast_scores(first), contrast_scores(second))
    by_next = scores[NEXT][:, :IN_A_NAME].sum(-1) > scores[ITSELF][:, :IN_A_NAME].sum(-1)
    passages = [[] for _ in range(n)] if shards is None else _passages(seen, decode, shards, seq_len)
    names = []
    for concept in range(n):
        kind = NEXT if by_next[concept] else ITSELF
        listed = {
            each: [
                TokenScore(token=texts(token), score=round(score, 6))
                for token, score in zip(tokens[each][concept].tolist(), scores[each][concept].tolist(), strict=True)
                if token >= 0
            ]
            for each in (ITSELF, NEXT)
        }
        enough = int(counts[:, concept].min()) >= FEWEST
        stability = float(stable[kind][concept]) if enough else None
        why = _why_not(counts[:, concept], stability)
        words = [] if why else chosen_words(listed[kind])
        in_name = [visible(score.token) in words for score in listed[kind]]
        names.append(
            ConceptName(
                concept=concept,
                name=None if why else ("before " if kind == NEXT else "") + ", ".join(words),
                coverage=None if why else float(shares[kind][concept, : len(in_name)][in_name].sum()),
                source=None if why else "tokens",
                why=why,
                occurrences=int(counts[:, concept].sum()),
                share=int(counts[:, concept].sum()) / max(1, seen.positions),
                stability=stability,
                kind=kind,
                tokens=listed[ITSELF],
                next_tokens=listed[NEXT],
                passages=passages[concept],
            )
        )
    return names


def chosen_words(listed: Sequence[TokenScore]) -> list[str]:
    """The words of a name: the best token, and those whose score is close to its score."""
    kept = [score for score in listed if score.score >= OF_THE_BEST * listed[0].score]
    return list(dict.fromkeys(visible(score.token) for score in kept))[:IN_A_NAME]


def visible(token: str) -> str:
    """A token for one line of text: no outer spaces, unprintable characters as their escapes."""
    bare = token.strip(" ") or token
    return printable(bare).replace(" ", "␣")


def printable(text: str) -> str:
    """`text` with unprintable characters as their escapes."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _why_not(counts: np.ndarray, stability: float | None) -> str:
    total = int(counts.sum())
    if not total:
        return "never active in the text seen"
    if stability is None:
        return f"active at only {total} positions of the text seen"
    if stability < STABLE:
        return f"two halves of the text disagree on its tokens (stability {stability:.2f})"
    return ""


class _Texts:
    """Text of single tokens, each decoded once."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode, self._known = decode, {}

    def __call__(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = self._decode([token])
        return self._known[token]


def _passages(seen: Occurrences, decode: Callable[..., Any], shards: TokenShards, seq_len: int) -> list[list[Passage]]:
    """The strongest passages of each concept."""
    places, strengths = seen.strongest()
    passages: list[list[Passage]] = [[] for _ in range(seen.n_concepts)]
    windows, row = np.unique(places[1], return_inverse=True)
    ids = shards.windows(windows, seq_len)
    for concept, position, line, strength in zip(
        places[0].tolist(), places[2].tolist(), row.tolist(), strengths.tolist(), strict=True
    ):
        before, token, after = around(decode, ids[line].tolist(), position)
        passages[concept].append(Passage(before=before, token=token, after=after, activation=round(strength, 6)))
    return passages


def around(decode: Callable[[Sequence[int]], str], ids: Sequence[int], position: int) -> tuple[str, str, str]:
    """Text before the token at `position` of `ids`, the token, and the text after it."""
    before, after = ids[max(0, position - BEFORE) : position], ids[position + 1 : position + 1 + AFTER]
    return decode(before), decode([ids[position]]), decode(after)


GIVE_UP_AFTER = 3
"""Failures in a row."""
LONGEST = 120
"""Characters of a name."""


def name_with(
    command: str,
    concepts: Sequence[ConceptName],
    *,
    seconds: float,
    progress: Callable[..., Any] | None = None,
) -> tuple[list[ConceptName], list[str]]:
    """`concepts` with names from `command`, where it gave one, and what went wrong, a sentence each.

    The program is run for concepts with enough occurrences only.

    Args:
        command: program and arguments, split as a shell would, without one.
        seconds: time for each concept.

    Raises:
        CocomixError: the command is empty, or cannot be split.
    """
    try:
        arguments = shlex.split(command)
    except ValueError as error:
        raise CocomixError(f"--llm {command!r} cannot be split into words ({error}); fix its quotes") from error
    if not arguments:
        raise CocomixError("--llm names no program; give one that reads JSON and prints a name")
    named, problems, in_a_row = list(concepts), [], 0
    frequent = [place for place, name in enumerate(concepts) if name.passages and name.occurrences >= 2 * FEWEST]
    for number, place in enumerate(frequent):
        automatic = named[place]
        try:
            name = _run(arguments, question(automatic), seconds)
            named[place] = automatic.model_copy(update={"name": name, "source": "llm", "why": "", "coverage": None})
            in_a_row = 0
        except _Failed as failure:
            problems.append(f"concept {automatic.concept}: {arguments[0]} {failure}")
            in_a_row += 1
            if in_a_row == GIVE_UP_AFTER:
                problems.append(f"{len(frequent) - number - 1} concepts were not asked for after {in_a_row} failures")
                break
        if progress is not None:
            progress(number + 1, len(frequent), {})
    return named, problems


def question(name: ConceptName) -> dict[str, Any]:
    """What the program reads."""
    return name.model_dump(include={"concept", "stability", "share", "tokens", "next_tokens", "passages"}) | {
        "automatic_name": name.name
    }


class _Failed(Exception):
    pass


def _run(arguments: list[str], request: dict[str, Any], seconds: float) -> str:
    """The first line that is not empty of what the program prints."""
    try:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise _Failed(f"cannot be started ({error.strerror})") from error
    try:
        output, complaint = process.communicate(json.dumps(request), timeout=seconds)
    except subprocess.TimeoutExpired:
        raise _Failed(f"said nothing for {seconds:g} seconds") from None
    finally:
        with contextlib.suppress(ProcessLookupError):  # what it started may outlive it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        last = (complaint.strip().splitlines() or ["no message"])[-1]
        raise _Failed(f"ended with code {process.returncode} ({last[:LONGEST]})")
    name = next((line.strip() for line in output.splitlines() if line.strip()), "")
    if not name:
        raise _Failed("printed no name")
    return name[:LONGEST]
