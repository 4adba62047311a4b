"""Classifiers of noisy data: log p(y | x_t) at every noise level."""

from torch import Tensor, nn

from ..backbones import Backbone
from ..schedules import Schedule
from .parameterizations import at_least_float32
from .protocols import Classifier

__all__ = ["NoisyClassifier", "check_outputs"]


def check_outputs(backbone: Backbone, what: str, image_option: str) -> None:
    """Raises ValueError for a network without one output per class, or one with a condition input.

    Arguments:
        what: the model on this backbone, for the message.
        image_option: the backbone option that fits images, for the message.
    """
    if not backbone.out_features or backbone.conditional:
        name = type(backbone).__name__
        found = "takes a condition" if backbone.out_features else "has an output in the shape of the data"
        raise ValueError(
            f"{what} needs a network with one output per class and no condition input, but this {name} {found}; "
            f"use backbone={image_option} for images, backbone=mlp_classifier for vectors"
        )


class NoisyClassifier(nn.Module, Classifier):
    """log p(y | x_t) = log softmax F(x_t / sqrt(alpha^2 + sigma^2), log_snr).

    Sohl-Dickstein et al. 2015, arXiv 1503.03585, section 2.5; Dhariwal & Nichol 2021, arXiv 2105.05233, section 4. The
    inputs of the network are the data at the scale of a variance-preserving schedule and the log-SNR, not t.

    Arguments:
        backbone: module (x, log_snr [B] or None, None) -> F [B, number of classes].
        schedule: the noise schedule.

    Raises:
        ValueError: a backbone without one output per class, or one with a condition input.
    """

    def __init__(self, backbone: Backbone, schedule: Schedule):
        super().__init__()
        check_outputs(backbone, "a classifier", "unet_encoder")
        self.backbone, self.schedule, self.num_classes = backbone, schedule, backbone.out_features

    def log_prob(self, x_t: Tensor, t: Tensor | None) -> Tensor:
        assert t is not None, "a classifier of noisy data needs a time"
        return self.log_prob_at(x_t, self.schedule.log_snr(t))

    def log_prob_at(self, x_t: Tensor, log_snr: Tensor) -> Tensor:
        """`log_prob` at a log-SNR of the schedule, float64."""
        x_t = at_least_float32(x_t)
        alpha, sigma = self.schedule.scales(log_snr, x_t.ndim)
        level = log_snr.to(x_t).expand(len(x_t)) if self.backbone.noise_conditioned else None
        logits = self.backbone((alpha**2 + sigma**2).rsqrt().to(x_t) * x_t, level, None)
        return logits.to(x_t.dtype).log_softmax(1)
