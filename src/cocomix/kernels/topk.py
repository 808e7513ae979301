"""The K largest of many, exactly: groups are compared by their maxima before any element is ranked."""

import torch


def largest(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`scores.topk(k)` over the last dimension: the same values in the same order, differentiable.

    On a CPU ranking C scores costs far more than reading them. The columns fall into groups; every one of the k
    largest is in one of the k groups with the largest maxima, so only those groups' members are ranked. Where scores
    are equal, another of the equal columns may be named.

    Args:
        scores: `[..., C]`.
        k: 1 to C.

    Returns:
        values `[..., k]`, descending, and their columns, int64 `[..., k]`.
    """
    size = _group_size(scores.shape[-1], k)
    if scores.device.type != "cpu" or size < 2 or scores.numel() == 0:
        values, ids = scores.topk(k, dim=-1)
        return values, ids
    with torch.no_grad():
        ids = _ids(scores.detach().reshape(-1, scores.shape[-1]), k, size).view(*scores.shape[:-1], k)
    return scores.gather(-1, ids), ids


def _group_size(columns: int, k: int) -> int:
    """Members of a group; below 2 grouping does not pay.

    torch ranks by one partial sort as long as there are at least 64 k candidates and by a slower way below; so the
    maxima must stay at least that many.
    """
    return columns // (64 * k)


def _ids(scores: torch.Tensor, k: int, size: int) -> torch.Tensor:
    rows, columns = scores.shape
    groups = columns // size
    # Group g is columns g, g + groups, g + 2 groups...: the maxima are then taken over whole stretches of memory.
    maxima = scores[:, : groups * size].view(rows, size, groups).amax(1)
    chosen = maxima.topk(k, dim=-1, sorted=False).indices
    members = chosen.unsqueeze(-1) + torch.arange(size, device=scores.device) * groups
    candidates = members.flatten(1)
    if groups * size < columns:
        rest = torch.arange(groups * size, columns, device=scores.device).expand(rows, -1)
        candidates = torch.cat((candidates, rest), dim=1)
    best = scores.gather(1, candidates).topk(k, dim=-1).indices
    return candidates.gather(1, best)
