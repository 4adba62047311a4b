"""A network as a denoiser: what its output means."""

import torch
from torch import Tensor, nn

from ..backbones import Backbone
from ..backbones.conditions import Condition, Embedding
from ..backbones.perturbations import Perturbation
from ..schedules import Schedule
from .parameterizations import Parameterization, Rows
from .protocols import Denoiser, Prediction

__all__ = ["Preconditioned"]


class Preconditioned(nn.Module, Denoiser):
    """A backbone read through a parameterization: x0_hat = c_skip x_t + c_out F(c_in x_t, log_snr, y), likewise eps.

    Karras et al. 2022, arXiv 2206.00364, eq. 7. The network sees the log-SNR, never t; one that was built
    without noise conditioning sees neither.

    Arguments:
        backbone: module (x, log_snr [B] or None, y) -> F.
        schedule: the noise schedule.
        parameterization: the meaning of F.
        has_null: whether training dropped the condition, so that y = -1 means something.

    Raises:
        ValueError: a parameterization that divides by alpha on a schedule that ends at alpha = 0.
    """

    def __init__(self, backbone: Backbone, schedule: Schedule, parameterization: Parameterization, has_null: bool):
        super().__init__()
        if schedule.zero_terminal_snr and parameterization.needs_signal:
            raise ValueError(
                f"a network that predicts {type(parameterization).__name__.lower()} cannot be used at zero terminal SNR: "
                f"at t = 1 {type(schedule).__name__} holds no signal (log_snr_min=-inf) and x_0 would be divided by 0; "
                "take objective=x0, v, flow or edm, or a finite log_snr_min"
            )
        self.backbone, self.schedule, self.parameterization = backbone, schedule, parameterization
        self.num_classes = backbone.num_classes
        self.has_null = bool(has_null) or not backbone.conditional

    @property
    def conditional(self) -> bool:
        return self.backbone.conditional

    embeds = conditional
    attention_layers = property(lambda self: self.backbone.attention_layers)
    residual_blocks = property(lambda self: self.backbone.residual_blocks)
    compiled = property(lambda self: self.backbone.compiled)

    def embed(self, y: Condition) -> Embedding:
        return self.backbone.embed(y)

    def output(
        self, x_t: Tensor, t: Tensor, y: Condition | None = None, perturbation: Perturbation | None = None
    ) -> tuple[Tensor, Rows]:
        """The network's output F and the rows that read it, in the dtype of x_t, float32 at least."""
        return self.output_at(x_t, self.schedule.log_snr(t), y, perturbation)

    def output_at(
        self, x_t: Tensor, log_snr: Tensor, y: Condition | None = None, perturbation: Perturbation | None = None
    ) -> tuple[Tensor, Rows]:
        """`output` at a log-SNR of the schedule, float64."""
        x_t = x_t.to(torch.promote_types(x_t.dtype, torch.float32))
        rows = self.parameterization.rows(*self.schedule.scales(log_snr, x_t.ndim)).to(x_t)
        level = log_snr.to(x_t).expand(len(x_t)) if self.backbone.noise_conditioned else None
        changed = () if perturbation is None else (perturbation,)  # which a network of one's own need not know
        return self.backbone(rows.c_in * x_t, level, y, *changed).to(x_t.dtype), rows

    def error(self, x_0: Tensor, eps: Tensor, log_snr: Tensor, y: Condition | None) -> tuple[Tensor, Rows]:
        """F - F* at x_t = alpha x_0 + sigma eps, F* = p x_0 + q eps, and the rows that read F.

        Raises:
            ValueError: an output of another shape than the data.
        """
        alpha, sigma = (a.to(x_0) for a in self.schedule.scales(log_snr, x_0.ndim))
        output, rows = self.output_at(alpha * x_0 + sigma * eps, log_snr, y)
        if output.shape != x_0.shape:
            raise ValueError(
                f"the network's output {list(output.shape)} must have the shape of the data {list(x_0.shape)}"
            )
        return output - (rows.p * x_0 + rows.q * eps), rows

    def forward(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        return self.read(x_t, *self.output(x_t, t, y))

    def predict_perturbed(self, x_t: Tensor, t: Tensor, y: Condition | None, perturbation: Perturbation) -> Prediction:
        return self.read(x_t, *self.output(x_t, t, y, perturbation))

    def read(self, x_t: Tensor, output: Tensor, rows: Rows) -> Prediction:
        """The estimates that the network's output means."""
        x_t = x_t.to(output.dtype)
        return Prediction(rows.c_skip * x_t + rows.c_out * output, rows.e_skip * x_t + rows.e_out * output)
