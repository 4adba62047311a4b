#!/usr/bin/env bash
# denoising-diffusion-pytorch 2.3.4: GaussianDiffusion(immiscible=True) trains the network on the noise of other images.
#
# Behaviour: a network that returns exactly the noise inside its input has loss 2, as if its answer were independent of
#   the target; with immiscible=False its loss is 0.
# Surprise: immiscible diffusion reassigns the noises of a batch to the images that they are close to, and is otherwise
#   usual training: what was added is what has to be predicted. Here q_sample reassigns a copy, and the loss keeps the
#   order of before. The least loss is then near 1, by answering 0.
#   objective="pred_v" mixes up its target in the same way (the loss is weighted there); "pred_x0" is not affected.
# Source: denoising_diffusion_pytorch/denoising_diffusion_pytorch.py, GaussianDiffusion.q_sample and p_losses; Li et al.,
#   arXiv 2406.12303, algorithm 1; Ho et al., arXiv 2006.11239, equation 14 (the loss).
# Output seen:
#   pred_noise, immiscible=False: loss of the exact answer 0.000; expected 0
#   pred_noise, immiscible=True: loss of the exact answer 2.000; expected 0
#   pred_v, immiscible=False: loss of the exact answer 0.000; expected 0
#   pred_v, immiscible=True: loss of the exact answer 0.721; expected 0
#   pred_x0, immiscible=False: loss of the exact answer 0.000; expected 0
#   pred_x0, immiscible=True: loss of the exact answer 0.000; expected 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile denoising-diffusion-pytorch==2.3.4 torch==2.14.1 numpy==2.4.6
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import numpy as np
import torch
from denoising_diffusion_pytorch import GaussianDiffusion


class Oracle(torch.nn.Module):
    """Knows the images, hence the noise that was added to them: (x_t - sqrt(abar) x_0) / sqrt(1 - abar)."""

    channels = out_dim = 1
    self_condition = random_or_learned_sinusoidal_cond = False

    def forward(self, x, times, condition=None):
        abar = self.abar[times.numpy()][:, None, None, None]
        noise = (x.double().numpy() - np.sqrt(abar) * self.images) / np.sqrt(1 - abar)
        self.deviation = noise.std()
        answers = {
            "pred_noise": noise,
            "pred_x0": self.images,
            "pred_v": np.sqrt(abar) * noise - np.sqrt(1 - abar) * self.images,
        }
        return torch.from_numpy(answers[self.objective]).float()


torch.manual_seed(0)
losses = {}
for objective in ("pred_noise", "pred_v", "pred_x0"):
    for immiscible in (False, True):
        oracle = Oracle()
        oracle.objective = objective
        diffusion = GaussianDiffusion(oracle, image_size=4, timesteps=1000, objective=objective, immiscible=immiscible)
        oracle.abar = diffusion.alphas_cumprod.double().numpy()
        pixels = torch.rand(256, 1, 4, 4)
        oracle.images = 2 * pixels.double().numpy() - 1  # it scales [0, 1] to [-1, 1]
        losses[objective, immiscible] = np.mean([float(diffusion(pixels)) for _ in range(8)])
        print(f"{objective}, immiscible={immiscible}: loss of the exact answer {losses[objective, immiscible]:.3f}; expected 0")
        assert abs(oracle.deviation - 1) < 0.1, "the answer is not the noise"
right = [losses["pred_x0", True], *(losses[objective, False] for objective in ("pred_noise", "pred_v", "pred_x0"))]
if not (losses["pred_noise", True] > 1.5 and losses["pred_v", True] > 0.1 and max(right) < 1e-3):
    sys.exit("denoising-diffusion-pytorch behaves differently now")
PYTHON
