"""CLIP score of a tiny random CLIP: 2.5 max(cos, 0) of the vectors that CLIPModel itself gives."""

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
from clip_models import SIDE, Tokens, tiny_clip  # noqa: E402  # needs transformers

from diffguide.evaluation.quality.clip_score import clip_scores  # noqa: E402
from diffguide.guidance.potentials.clip import CLIP_MEAN, CLIP_STD  # noqa: E402


@pytest.mark.parametrize(("channels", "sign"), [(1, 1), (3, 1), (3, -1)])
def test_the_score_is_the_clipped_cosine(channels, sign):
    encoder = tiny_clip()
    encoder.model.text_projection.weight.mul_(sign)
    images = torch.randint(
        256, (130, channels, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    texts = [("a red house", "seven", "x")[row % 3] for row in range(130)]
    mean, std = (torch.tensor(part, dtype=torch.float64)[:, None, None] for part in (CLIP_MEAN, CLIP_STD))
    pixels = (images.expand(-1, 3, -1, -1).double() / 255 - mean) / std
    with torch.no_grad():
        out = encoder.model(pixel_values=pixels, **Tokens()(texts, True, True, "pt"))
    u, v = (part / part.norm(dim=1, keepdim=True) for part in (out.image_embeds, out.text_embeds))
    cosines = (u * v).sum(1).numpy()
    assert (sign * cosines).min() > 0
    np.testing.assert_allclose(clip_scores(encoder, images, texts), 2.5 * np.maximum(cosines, 0), atol=1e-5)


def test_pictures_of_another_side_are_resized():
    encoder = tiny_clip()
    grey = torch.full((1, 3, 40, 40), 128, dtype=torch.uint8)
    small = torch.full((1, 3, SIDE, SIDE), 128, dtype=torch.uint8)
    torch.testing.assert_close(
        clip_scores(encoder, grey, ["x"]), clip_scores(encoder, small, ["x"]), rtol=1e-5, atol=1e-5
    )
