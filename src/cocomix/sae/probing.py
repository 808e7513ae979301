"""k-sparse probing: can a few latents of an autoencoder tell what the text itself shows?

Reconstruction says how much of a hidden state an autoencoder keeps, not whether its latents are concepts. A k-sparse
probe (Gurnee et al., 2023, arXiv 2305.01610) fits a logistic regression on the k latents that differ most between two
classes of positions. The classes are `TextProperty`s: questions that a document answers without an annotator, such as
whether the text stands inside a quotation.

Choices:
- A property is asked where a token ends, of what has been read so far or of what comes next.
- Both classes have equally many positions, so chance is 0.5. Training and test positions come from different
  documents.
- Latents are chosen on the training positions, by the difference of their mean activations between the classes.
- Beside the latents stands the same regression on the whole hidden state: what there is to be found.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from scipy.optimize import minimize

from cocomix.data.sources import Document
from cocomix.utils.registry import Registry

OPEN, CLOSE = "“«", "”»"
SENTENCE_END = re.compile(r"[.?!]+[\"”')\]]*(?=\s|$)")
YEAR = re.compile(r"(?<!\d)(1[5-9]\d\d|20\d\d)(?!\d)")
RIDGE = 1e-2
"""Penalty on the squared weights of the standardised inputs of a regression, per position."""


class TextProperty(ABC):
    """A yes-or-no question about a place in a document, answered by its text.

    Attributes:
        name: its name in reports.
    """

    name: ClassVar[str]

    @abstractmethod
    def answers(self, document: Document) -> np.ndarray:
        """Answers after each number of characters, int8 `[characters + 1]`: 1 yes, 0 no, -1 not asked here."""


class NextWordCapitalised(TextProperty):
    """Whether the next word begins with a capital; asked where a word ends and no sentence does."""

    name = "next word capitalised"

    def answers(self, document: Document) -> np.ndarray:
        answers = np.full(len(document.text) + 1, -1, dtype=np.int8)
        for match in re.finditer(r"(?<=[\w,]) (?=(\w))", document.text):
            letter = match[1]
            if letter.isalpha():
                answers[match.start()] = letter.isupper()
        return answers


class InsideQuotation(TextProperty):
    """Whether the place is between quotation marks; asked at words. A paragraph ends every quotation."""

    name = "inside a quotation"

    def answers(self, document: Document) -> np.ndarray:
        answers, inside = np.full(len(document.text) + 1, -1, dtype=np.int8), False
        for place, character in enumerate(document.text):
            if character == '"':
                inside = not inside
            elif character in OPEN or character in CLOSE:
                inside = character in OPEN
            elif document.text.startswith("\n\n", place):
                inside = False
            if character.isalpha():
                answers[place + 1] = inside
        return answers


class InsideNumber(TextProperty):
    """Whether the last word that began is a number."""

    name = "inside a number"

    def answers(self, document: Document) -> np.ndarray:
        answers = np.full(len(document.text) + 1, -1, dtype=np.int8)
        for match in re.finditer(r"\d[\d,.]*|[^\W\d]+", document.text):
            answers[match.start() + 1 : match.end() + 1] = match[0][0].isdigit()
        return answers


class InsideQuestion(TextProperty):
    """Whether the sentence will end with a question mark; asked from its third word on, at words."""

    name = "inside a question"

    def answers(self, document: Document) -> np.ndarray:
        answers, start = np.full(len(document.text) + 1, -1, dtype=np.int8), 0
        for end in SENTENCE_END.finditer(document.text):
            for number, word in enumerate(re.finditer(r"\w+", document.text[start : end.start()])):
                if number >= 2:
                    answers[start + word.end()] = "?" in end[0]
            start = end.end()
        return answers


class SentenceEnds(TextProperty):
    """Whether the word that was read is the last one of its sentence; asked where words end."""

    name = "sentence ends"

    def answers(self, document: Document) -> np.ndarray:
        answers = np.full(len(document.text) + 1, -1, dtype=np.int8)
        for word in re.finditer(r"\w{2,}", document.text):
            answers[word.end()] = SENTENCE_END.match(document.text, word.end()) is not None
        return answers


class LateDocument(TextProperty):
    """Whether the document is from 1900 or later, by the first year in its date or name; asked at words."""

    name = "from 1900 on"

    def answers(self, document: Document) -> np.ndarray:
        year = YEAR.search(f"{document.meta.get('date', '')} {document.id}")
        answers = np.full(len(document.text) + 1, -1, dtype=np.int8)
        if year is not None:
            ends = [word.end() for word in re.finditer(r"\w+", document.text)]
            answers[ends] = int(year[1]) >= 1900
        return answers


TEXT_PROPERTIES: Registry[type[TextProperty]] = Registry(
    "text property",
    (NextWordCapitalised, InsideQuotation, InsideNumber, InsideQuestion, SentenceEnds, LateDocument),
)
register_text_property = TEXT_PROPERTIES.register


def balanced_positions(
    answers: np.ndarray, documents: np.ndarray, most: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray] | None:
    """Positions for a probe's training and for its test, from different documents, half of them of each class.

    Args:
        answers: int `[positions]`: 1, 0, or -1 where the property is not asked.
        documents: number of each position's document, int `[positions]`.
        most: most positions of each class in each half.

    Returns:
        Training and test positions; None if a half lacks a class.
    """
    numbers = generator.permutation(np.unique(documents))
    halves = []
    for part in (numbers[::2], numbers[1::2]):
        inside = np.isin(documents, part)
        classes = [np.flatnonzero(inside & (answers == answer)) for answer in (0, 1)]
        count = min(most, *map(len, classes))
        if not count:
            return None
        chosen = [generator.choice(members, count, replace=False) for members in classes]
        halves.append(np.sort(np.concatenate(chosen)))
    return halves[0], halves[1]


def most_different(values: np.ndarray, ids: np.ndarray, answers: np.ndarray, k: int, n_latents: int) -> np.ndarray:
    """The k latents whose mean activation differs most between the classes, int64 `[k]`, most different first.

    Args:
        values: activations of the active latents, float `[positions, active]`; one that is not positive is none.
        ids: their latents, int64 of the same shape.
        answers: 0 or 1, `[positions]`.
    """
    means = []
    for answer in (0, 1):
        chosen = answers == answer
        weights = np.maximum(values[chosen], 0).astype(np.float64)
        sums = np.bincount(ids[chosen].ravel(), weights=weights.ravel(), minlength=n_latents)
        means.append(sums / max(1, chosen.sum()))
    return np.argsort(-np.abs(means[1] - means[0]), kind="stable")[:k]


def dense_columns(values: np.ndarray, ids: np.ndarray, latents: np.ndarray) -> np.ndarray:
    """Activations of `latents` at every position, float64 `[positions, latents]`."""
    columns = np.zeros((len(values), len(latents)))
    for column, latent in enumerate(latents.tolist()):
        columns[:, column] = (np.maximum(values, 0) * (ids == latent)).sum(-1)
    return columns


def logistic_accuracy(
    train: np.ndarray, train_answers: np.ndarray, test: np.ndarray, test_answers: np.ndarray
) -> float:
    """Test accuracy of a ridge logistic regression on standardised inputs `[positions, inputs]`."""
    mean, scale = train.mean(0), train.std(0)
    scale[scale == 0] = 1

    def standardised(inputs: np.ndarray) -> np.ndarray:
        return np.concatenate([(inputs - mean) / scale, np.ones((len(inputs), 1))], axis=1)

    inputs, signs = standardised(train), 2.0 * train_answers - 1

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margins = signs * (inputs @ weights)
        slope = -signs * np.exp(-np.logaddexp(0, margins)) / len(signs)
        penalised = np.append(weights[:-1], 0)
        value = np.logaddexp(0, -margins).mean() + RIDGE / 2 * penalised @ penalised
        return float(value), inputs.T @ slope + RIDGE * penalised

    weights = minimize(loss, np.zeros(inputs.shape[1]), jac=True, method="L-BFGS-B").x
    return float(((standardised(test) @ weights > 0) == (test_answers == 1)).mean())


def probe(
    values: np.ndarray,
    ids: np.ndarray,
    hidden: np.ndarray | None,
    answers: np.ndarray,
    documents: np.ndarray,
    *,
    n_latents: int,
    ks: Sequence[int] = (1, 5, 20),
    most: int = 1000,
    seed: int = 0,
) -> dict[str, float] | None:
    """Accuracies of k-sparse probes for one property.

    Args:
        values, ids: the latents of each position, see `most_different`.
        hidden: the hidden states they encode, float `[positions, d_model]`, for comparison.
        answers, documents: see `balanced_positions`.

    Returns:
        `k=1`, ... and `hidden`: shares of test positions told right, chance being 0.5; `positions`, the number of test
        positions. None if there are too few documents with both answers.
    """
    halves = balanced_positions(answers, documents, most, np.random.default_rng(seed))
    if halves is None:
        return None
    train, test = halves
    figures: dict[str, float] = {}
    chosen = most_different(values[train], ids[train], answers[train], max(ks), n_latents)
    for k in ks:
        inputs = [dense_columns(values[half], ids[half], chosen[:k]) for half in halves]
        figures[f"k={k}"] = logistic_accuracy(inputs[0], answers[train], inputs[1], answers[test])
    if hidden is not None:
        wide = hidden.astype(np.float64)
        figures["hidden"] = logistic_accuracy(wide[train], answers[train], wide[test], answers[test])
    return figures | {"positions": len(test)}
