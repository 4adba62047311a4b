"""Class logits that are known exactly, as an energy: those of Gaussian mixtures in two dimensions."""

import math

import torch
from closed_forms import Mixture

from diffguide.backbones import Backbone
from diffguide.models.joint_energy import JointEnergy

WEIGHTS, LABELS = [0.5, 0.2, 0.3], [0, 1, 1]
MEANS = [[0.6, -0.4], [-0.7, 0.2], [0.1, 0.8]]
COVARIANCES = [[[0.09, 0.03], [0.03, 0.04]], [[0.02, 0.0], [0.0, 0.3]], [[0.05, -0.02], [-0.02, 0.06]]]
TRUTH = Mixture(WEIGHTS, MEANS, COVARIANCES, LABELS)


class MixtureLogits(Backbone):
    """log p(x, y) of a mixture, and a constant that no probability sees."""

    noise_conditioned = False

    def __init__(self, weights=WEIGHTS, means=MEANS, covariances=COVARIANCES, labels=LABELS):
        super().__init__()
        self.weights, self.means = (torch.tensor(part, dtype=torch.float64) for part in (weights, means))
        self.covariances, self.labels = torch.tensor(covariances, dtype=torch.float64), torch.tensor(labels)
        self.out_features = int(self.labels.max()) + 1

    def forward(self, x, log_snr, y=None):
        assert log_snr is None and y is None
        z = x[:, None].double() - self.means
        squares = torch.einsum("bkd,kde,bke->bk", z, torch.linalg.inv(self.covariances), z)
        volume = torch.logdet(2 * math.pi * self.covariances)
        joint = self.weights.log() - 0.5 * (squares + volume)
        classes = [joint[:, self.labels == label].logsumexp(1) for label in range(self.out_features)]
        return torch.stack(classes, 1) + 7.0


def exact() -> JointEnergy:
    return JointEnergy(MixtureLogits())
