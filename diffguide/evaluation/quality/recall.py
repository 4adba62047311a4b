"""Recall of texts: whether a picture is nearer to its own text than to others that say something else."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ...randomness import fold

__all__ = ["choose_candidates", "find_related", "is_nearest"]

CANDIDATE_PURPOSE = 8  # purpose of the seed


def find_related(captions: Iterable[Sequence[str]]) -> dict[str, set[str]]:
    """For each text those that say the same: the captions of the pictures that have it, itself among them."""
    related: dict[str, set[str]] = {}
    for texts in captions:
        for text in texts:
            if text:
                related.setdefault(text, set()).update(each for each in texts if each)
    return related


def choose_candidates(
    texts: Sequence[str], pool: Sequence[str], related: Mapping[str, set[str]], candidates: int, seed: int
) -> Tensor:
    """For each text the indices in the pool [N, K] of K - 1 others that say something else, and of itself as the first.

    They are drawn without replacement, a function of the seed and of the place of the text.

    Arguments:
        texts: in the pool.
        pool: different texts.
        related: of `find_related`; a text that it does not have is related to itself alone.
        candidates: K; fewer where the pool has not so many.

    Raises:
        ValueError: a text without another one that says something else.
    """
    index = {text: row for row, text in enumerate(pool)}
    same = {
        text: {index[other] for other in related.get(text, ()) if other in index} | {index[text]} for text in {*texts}
    }
    least = min(len(pool) - len(rows) for rows in same.values())
    if least < 1:
        raise ValueError(
            "recall needs several texts that say something else, and all of these belong to the same pictures"
        )
    count = min(candidates - 1, least)
    chosen = []
    for place, text in enumerate(texts):
        rng = torch.Generator().manual_seed(fold(seed, CANDIDATE_PURPOSE, place))
        order = torch.randperm(len(pool), generator=rng).tolist()
        others = (row for row in order if row not in same[text])
        chosen.append([index[text], *(next(others) for _ in range(count))])
    return torch.tensor(chosen)


def is_nearest(pictures: Tensor, texts: Tensor, candidates: Tensor) -> Tensor:
    """Whether each picture [N, E] is nearer to its own text than to all other candidates, [N] bool; a tie is wrong.

    Arguments:
        pictures, texts: unit vectors [N, E] and [T, E].
        candidates: rows of texts [N, K], the own one first.
    """
    cosines = (pictures[:, None] * texts[candidates]).sum(-1)
    return (cosines[:, :1] > cosines[:, 1:]).all(1)
