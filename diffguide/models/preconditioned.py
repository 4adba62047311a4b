"""A network as a denoiser."""

from operator import attrgetter

from torch import Tensor, nn

from ..backbones import Backbone
from ..backbones.conditions import Condition, Embedding
from ..backbones.perturbations import Perturbation
from ..schedules import Schedule
from .parameterizations import Parameterization, Rows, at_least_float32
from .protocols import Denoiser, Prediction

__all__ = ["Preconditioned"]


class Preconditioned(nn.Module, Denoiser):
    """x0_hat = c_skip x_t + c_out F(c_in x_t, log_snr, y), eps_hat = e_skip x_t + e_out F, with a backbone F.

    Karras et al. 2022, arXiv 2206.00364, eq. 7. The network gets the log-SNR, not t; one that was built
    without noise conditioning gets neither.

    Arguments:
        backbone: module (x, log_snr [B] or None, y) -> F.
        schedule: the noise schedule.
        parameterization: what F predicts.
        has_null: whether training dropped the condition of some examples, so that y = -1 is trained.

    Raises:
        ValueError: a parameterization that divides by alpha, on a schedule that ends at alpha = 0.
    """

    def __init__(self, backbone: Backbone, schedule: Schedule, parameterization: Parameterization, has_null: bool):
        super().__init__()
        if schedule.zero_terminal_snr and parameterization.needs_signal:
            raise ValueError(
                f"a network that predicts {type(parameterization).__name__.lower()} cannot be used at zero terminal SNR "
                f"({type(schedule).__name__} has log_snr_min=-inf), where x_0 would be divided by 0; use objective=x0, v, "
                "flow or edm, or a finite log_snr_min"
            )
        self.backbone, self.schedule, self.parameterization = backbone, schedule, parameterization
        self.num_classes = backbone.num_classes
        self.has_null = bool(has_null) or not backbone.conditional

    @property
    def conditional(self) -> bool:
        return self.backbone.conditional

    embeds = conditional
    attention_layers = property(attrgetter("backbone.attention_layers"))
    residual_blocks = property(attrgetter("backbone.residual_blocks"))
    is_compiled = property(attrgetter("backbone.is_compiled"))

    def embed(self, y: Condition) -> Embedding:
        return self.backbone.embed(y)

    def inputs(self, x_t: Tensor, log_snr: Tensor) -> tuple[Rows, Tensor, Tensor | None]:
        """(The rows at a log-SNR, c_in x_t, the log-SNR [B] that the network gets or None)."""
        rows = self.parameterization.rows(*self.schedule.scales(log_snr, x_t.ndim)).to(x_t)
        level = log_snr.to(x_t).expand(len(x_t)) if self.backbone.noise_conditioned else None
        return rows, rows.c_in * x_t, level

    def error(self, x_0: Tensor, eps: Tensor, log_snr: Tensor, y: Condition | None) -> tuple[Tensor, Rows]:
        """(F - F*, the rows) at x_t = alpha x_0 + sigma eps, where F* = p x_0 + q eps.

        Raises:
            ValueError: an output in another shape than the data.
        """
        alpha, sigma = (a.to(x_0) for a in self.schedule.scales(log_snr, x_0.ndim))
        x_t = at_least_float32(alpha * x_0 + sigma * eps)
        rows, *inputs = self.inputs(x_t, log_snr)
        output = self.backbone(*inputs, y).to(x_t.dtype)
        if output.shape != x_0.shape:
            raise ValueError(
                f"the output of the network {list(output.shape)} must have the shape of the data {list(x_0.shape)}"
            )
        return output - (rows.p * x_0 + rows.q * eps), rows

    def forward(
        self, x_t: Tensor, t: Tensor, y: Condition | None = None, perturbation: Perturbation | None = None
    ) -> Prediction:
        if self.tally is not None:
            self.tally.evaluations += len(x_t)
        x_t = at_least_float32(x_t)
        rows, *inputs = self.inputs(x_t, self.schedule.log_snr(t))
        changes = () if perturbation is None else (perturbation,)  # a user's network may not have this argument
        output = self.backbone(*inputs, y, *changes).to(x_t.dtype)
        return Prediction(rows.c_skip * x_t + rows.c_out * output, rows.e_skip * x_t + rows.e_out * output)

    def predict_perturbed(self, x_t: Tensor, t: Tensor, y: Condition | None, perturbation: Perturbation) -> Prediction:
        return self(x_t, t, y, perturbation)
