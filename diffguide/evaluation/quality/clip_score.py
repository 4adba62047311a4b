"""CLIP score: how well pictures fit their texts, by a pretrained CLIP."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...guidance.potentials.clip import ClipEncoder
from .features import preprocess

__all__ = ["clip_scores"]

WEIGHT = 2.5
HALF = (0.5, 0.5, 0.5)
AT_ONCE = 100  # pictures


@torch.no_grad()
def clip_scores(
    encoder: ClipEncoder, images: Tensor, texts: Sequence[str], device: torch.device | str = "cpu"
) -> Tensor:
    """2.5 max(cos(v, c), 0) of the vectors v of a picture and c of its text, [N] in [0, 2.5].

    Hessel, Holtzman, Forbes, Le Bras, Choi, "CLIPScore", 2021, arXiv 2104.08718, eq. 1, with w = 2.5. The texts are taken as
    they are, without the words "A photo depicts" that the paper puts before captions. Pictures are resized to the side of the
    encoder, bicubic with antialiasing, without a crop.

    Arguments:
        images: bytes [N, 1 or 3, H, W].
        texts: one per picture.
    """
    encoder.model.to(device)
    distinct = list(dict.fromkeys(texts))
    index = {text: row for row, text in enumerate(distinct)}
    c = encoder.encode_texts(distinct)[[index[text] for text in texts]]
    parts = []
    for some, own in zip(images.split(AT_ONCE), c.split(AT_ONCE)):
        v = encoder.encode_images(preprocess(some.to(device), encoder.side, HALF, HALF))
        parts.append(WEIGHT * (v * own).sum(1).clamp(min=0))
    return torch.cat(parts).cpu()
