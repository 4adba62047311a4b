#!/usr/bin/env bash
# torchmetrics 1.9.0: MiFID does not penalize a generator that returns nothing but copies of training images.
#
# Behaviour: 100 generated images that are exact copies of 100 of 2,000 training images get no penalty: the value is the
#   plain FID. 5,500 images of which 5,000 are new, and 500 are the training set, get the greatest penalty there is.
# Surprise: the penalty is for memorization. Its authors average, over the *generated* images, the cosine distance to
#   the nearest training image, which is 0 for copies. torchmetrics averages over the
#   *real* images the distance to the nearest generated one, which tells how well the training set is covered: it is large
#   for a generator that copies few images, and small for any generator with many images that covers the data well.
#   Between two sets of one size that are alike, the two averages are alike too.
# Source: torchmetrics/image/mifid.py, MemorizationInformedFrechetInceptionDistance.compute (the real features go first into
#   _compute_cosine_distance, whose first argument is averaged over); Bai et al., arXiv 2106.03062,
#   and their code, generative-memorization-benchmark, src/competition_scoring.py (the generated features go first there).
# Output seen:
#   100 copies: MiFID 3.637e+04; expected 3.627e+18 (FID 3.637e+04, distance 0.000)
#   100 new images: MiFID 3.696e+04; expected 3.696e+04 (FID 3.696e+04, distance 0.125)
#   5,000 new images and all training images: MiFID 6.418e+17; expected 6419 (FID 6419, distance 0.126)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torchmetrics==1.9.0 torch-fidelity==0.4.0 torch==2.14.1 numpy==2.4.6 scipy==1.17.1
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import numpy as np
import torch
from torchmetrics.image.mifid import MemorizationInformedFrechetInceptionDistance

LIMIT, SMALLEST = 0.1, 1e-14  # a larger distance counts as 1 (the default); what the code adds to the distance


class Pixels(torch.nn.Module):
    """The features are the pixels themselves."""

    def forward(self, images):
        return images.double().flatten(1)


def frechet(a, b):
    product = np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(product).astype(complex)).real.sum()
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a, rowvar=False) + np.cov(b, rowvar=False)) - 2 * root


def expected(real, fake):
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (real, fake)]
    distance = (1 - np.abs(unit[1] @ unit[0].T)).min(1).mean()  # per generated image: the nearest training image
    fid = frechet(real, fake)
    return fid, fid / ((distance if distance < LIMIT else 1) + SMALLEST), distance


def seen(real, fake):
    metric = MemorizationInformedFrechetInceptionDistance(feature=Pixels())
    metric.set_dtype(torch.float64)
    for images, is_real in ((real, True), (fake, False)):
        metric.update(torch.from_numpy(images.reshape(-1, 3, 4, 4)), real=is_real)
    return float(metric.compute())


generator = np.random.default_rng(0)


def images(n):
    return generator.integers(0, 256, (n, 48), dtype=np.uint8)


training = images(2000)
cases = {
    "100 copies": (training, training[:100]),
    "100 new images": (training, images(100)),
    "5,000 new images and all training images": (training[:500], np.concatenate([training[:500], images(5000)])),
}
values = {}
for name, (real, fake) in cases.items():
    fid, right, distance = expected(real.astype(float), fake.astype(float))
    values[name] = seen(real, fake), right, fid
    print(f"{name}: MiFID {values[name][0]:.4g}; expected {right:.4g} (FID {fid:.4g}, distance {max(distance, 0):.3f})")
copies, new, mixed = values.values()
assert abs(new[0] / new[1] - 1) < 1e-3, "the expectation itself is wrong"
if not (abs(copies[0] / copies[2] - 1) < 1e-3 and copies[1] > 1e10 * copies[0] and mixed[0] > 1e10 * mixed[1]):
    sys.exit("torchmetrics behaves differently now")
PYTHON
