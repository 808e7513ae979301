"""Labels beside crowded marks: each takes the nearest free place.

With twenty variants a legend cannot be read, so every point of a scatter plot is labelled where it stands. adjustText
was measured instead and left labels on each other and on marks (docs/decisions.md).
"""

from collections.abc import Iterator, Sequence

Point = tuple[float, float]

CLEARANCE = 8.0
"""Distance from a mark to its label, and room each mark keeps free around it (half of it), in points."""


def place_labels(marks: Sequence[Point], widths: Sequence[float], height: float) -> list[Point]:
    """Lower left corners of labels, none overlapping another label or a mark, each as near to its mark as is free.

    Labels are placed from the top down, so that a crowd fans out in the order of its marks. Lengths in points.

    Args:
        marks: centre of each mark.
        widths: of each label.
        height: of every label.
    """
    radius = CLEARANCE / 2
    taken = [(x - radius, y - radius, x + radius, y + radius) for x, y in marks]
    corners: dict[int, Point] = {}
    for index in sorted(range(len(marks)), key=lambda number: -marks[number][1]):
        for left, bottom in _candidates(marks[index], widths[index], height):
            box = (left, bottom, left + widths[index], bottom + height)
            if not any(overlap(box, other) for other in taken):
                taken.append(box)
                corners[index] = (left, bottom)
                break
    return [corners[index] for index in range(len(marks))]


def overlap(box: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether two boxes (left, bottom, right, top) share any area."""
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]


def _candidates(mark: Point, width: float, height: float) -> Iterator[Point]:
    """Corners to try, nearest first: right and left of the mark, ever further up and down and out; it never ends."""
    x, y = mark
    ring = 0
    while True:
        for up in (ring, -ring):
            for out in (0, ring):
                bottom = y - height / 2 + up * height / 2
                yield x + CLEARANCE + out * height / 2, bottom
                yield x - CLEARANCE - out * height / 2 - width, bottom
        ring += 1
