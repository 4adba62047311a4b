"""A network as a denoiser."""

import copy
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from ..backbones import Backbone
from ..backbones.conditioning import Conditioning
from ..backbones.conditions import Condition, RowCondition
from ..backbones.perturbations import Perturbation
from ..schedules import Schedule, Tabulated, tabulate, time_key
from ..schedules.tabulated import is_transformed, ordinary_tensors
from .parameterizations import Parameterization, Rows, at_least_float32
from .protocols import Denoiser, Prediction, StackedPrediction, VariancePrediction

__all__ = ["Preconditioned"]

MAX_SHAPES = 4  # of batches whose calls a table holds


class Call(NamedTuple):
    """What a call of the network takes from its time: the rows of x_0 and eps one above the other, [2, 1, ...].

    Attributes:
        c_in: 0-d.
        skip: c_skip and e_skip.
        out: c_out and e_out.
        level: the log-SNR [B], or None.
    """

    c_in: Tensor
    skip: Tensor
    out: Tensor
    level: Tensor | None


class Preconditioned(nn.Module, Denoiser):
    """x0_hat = c_skip x_t + c_out F(c_in x_t, log_snr, y), eps_hat = e_skip x_t + e_out F, with a backbone F.

    Karras et al. 2022, arXiv 2206.00364, eq. 7. The network gets the log-SNR, not t; one that was built
    without noise conditioning gets neither. Of an output with a learned variance, F is the first half of the channels; the
    second half is v of a `VariancePrediction`.

    Arguments:
        backbone: module (x, log_snr [B] or None, y) -> F.
        schedule: the noise schedule.
        parameterization: what F predicts.
        has_null: whether training dropped the condition of some examples, so that y = -1 is trained.

    Raises:
        ValueError: a parameterization that divides by alpha, on a schedule that ends at alpha = 0; has_null with a network
            that takes no null condition.
    """

    def __init__(self, backbone: Backbone, schedule: Schedule, parameterization: Parameterization, has_null: bool):
        super().__init__()
        if schedule.zero_terminal_snr and parameterization.needs_signal:
            raise ValueError(
                f"a network that predicts {type(parameterization).__name__.lower()} cannot be used at zero terminal SNR "
                f"({type(schedule).__name__} has log_snr_min=-inf), where x_0 would be divided by 0; use objective=x0, v, "
                "flow or edm, or a finite log_snr_min"
            )
        if has_null and not backbone.takes_null:
            raise ValueError(
                "p_uncond must be 0: this network has no null class, so its labels cannot be dropped; set null_class to a row "
                "of its class table"
            )
        self.backbone, self.schedule, self.parameterization = backbone, schedule, parameterization
        self.num_classes, self.learned_variance = backbone.num_classes, backbone.learned_variance
        self.has_null = bool(has_null) or not backbone.conditional
        self.table: dict[Any, dict[float, Call]] | None = None  # of a run, by shape, type and device of x_t
        self.kept: tuple[tuple[Schedule, Parameterization, dict], dict] | None = None

    @property
    def conditional(self) -> bool:
        return self.backbone.conditional

    @property
    def conditioning(self) -> Conditioning | None:  # type: ignore[override]
        return getattr(self.backbone, "conditioning", None)  # a user's network may not have it

    embeds = conditional
    attention_layers = property(attrgetter("backbone.attention_layers"))
    residual_blocks = property(attrgetter("backbone.residual_blocks"))
    perturbations = property(lambda self: getattr(self.backbone, "perturbations", ()))  # a user's network has none
    is_compiled = property(attrgetter("backbone.is_compiled"))

    def embed(self, y: Condition) -> RowCondition:
        return self.backbone.embed(y)

    def start(self, noise: Any, times: Tensor) -> Self:
        run = copy.copy(self)
        run.__dict__["schedule"] = tabulate(self.schedule, times)  # in front of the submodule, which the copy shares
        run.table = self.keep_table(run.schedule)
        return run

    def keep_table(self, schedule: Schedule) -> dict:
        """The calls of the last run, if they are of the same table and parameterization; else none so far."""
        settings = dict(vars(self.parameterization))
        if not all(isinstance(value, int | float) for value in settings.values()):
            return {}
        facts = schedule, self.parameterization, settings
        if self.kept is None or any(a is not b for a, b in zip(self.kept[0][:2], facts)) or self.kept[0][2] != settings:
            self.kept = facts, {}
        return self.kept[1]

    def call_at(self, x_t: Tensor, t: Tensor) -> Call | None:
        """What a call with x_t takes from a time of the grid of a run; None for any other time."""
        time = None if self.table is None else time_key(t)
        if self.table is None or time is None:
            return None
        kind = x_t.shape, x_t.dtype, x_t.device
        if kind not in self.table:
            if type(x_t) is not Tensor or is_transformed():
                return None
            if len(self.table) >= MAX_SHAPES:
                self.table.clear()
            with ordinary_tensors():
                self.table[kind] = self.tabulate_calls(x_t)
        return self.table[kind].get(time)

    def tabulate_calls(self, x_t: Tensor) -> dict[float, Call]:
        """The calls at the times of the grid: exact arithmetic, so that the values are those of each time alone."""
        assert isinstance(self.schedule, Tabulated)
        grid, keys = self.schedule.grid, self.schedule.keys
        rows = self.parameterization.rows(grid.alpha, grid.sigma)
        place = x_t.device, x_t.dtype
        pairs = (torch.stack(pair, dim=1) for pair in ((rows.c_skip, rows.e_skip), (rows.c_out, rows.e_out)))
        skip, out = (pair.to(*place).reshape(len(keys), 2, *[1] * x_t.ndim).unbind() for pair in pairs)
        levels: Sequence[Tensor | None] = [None] * len(keys)
        if self.backbone.noise_conditioned:
            levels = [self.network_level(row) for row in grid.log_snr.to(*place)[:, None].expand(-1, len(x_t))]
        return dict(zip(keys, map(Call, rows.c_in.to(x_t.dtype).unbind(), skip, out, levels)))

    def rows_at(self, x_t: Tensor, log_snr: Tensor) -> tuple[Rows, Tensor | None]:
        """(The rows at a log-SNR, the log-SNR [B] that the network gets or None)."""
        rows = self.parameterization.rows(*self.schedule.scales(log_snr, x_t.ndim)).to(x_t)
        if not self.backbone.noise_conditioned:
            return rows, None
        return rows, self.network_level(log_snr.to(x_t).expand(x_t.shape[0]))

    def network_level(self, log_snr: Tensor) -> Tensor:
        """What the network gets of the log-SNR [B]."""
        return log_snr

    def error(self, x_0: Tensor, eps: Tensor, log_snr: Tensor, y: Condition | None) -> tuple[Tensor, Rows]:
        """(F - F*, the rows) at x_t = alpha x_0 + sigma eps, where F* = p x_0 + q eps.

        A learned variance has no error here: no objective trains it.

        Raises:
            ValueError: an output in another shape than the data.
        """
        alpha, sigma = (a.to(x_0) for a in self.schedule.scales(log_snr, x_0.ndim))
        x_t = at_least_float32(alpha * x_0 + sigma * eps)
        rows, level = self.rows_at(x_t, log_snr)
        output = self.backbone(rows.c_in * x_t, level, y).to(x_t.dtype)
        if self.learned_variance:
            output = output.chunk(2, dim=1)[0]
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
        changes = () if perturbation is None else (perturbation,)  # a user's network may not have this argument
        call = self.call_at(x_t, t)
        if call is not None:
            output = self.backbone(call.c_in * x_t, call.level, y, *changes).to(x_t.dtype)
            if self.learned_variance:
                output, v = output.chunk(2, dim=1)
                x_0, eps = call.skip * x_t + call.out * output
                return VariancePrediction(x_0, eps, v)
            return StackedPrediction(call.skip * x_t + call.out * output)
        return self.predict_at(x_t, self.schedule.log_snr(t), y, *changes)

    def predict_at(self, x_t: Tensor, log_snr: Tensor, y: Condition | None, *changes: Perturbation) -> Prediction:
        """The prediction at a log-SNR, 0-d or [B] float64; x_t in float32 at least."""
        rows, level = self.rows_at(x_t, log_snr)
        output = self.backbone(rows.c_in * x_t, level, y, *changes).to(x_t.dtype)
        v = None
        if self.learned_variance:
            output, v = output.chunk(2, dim=1)
        prediction = Prediction(rows.c_skip * x_t + rows.c_out * output, rows.e_skip * x_t + rows.e_out * output)
        return prediction if v is None else VariancePrediction(*prediction, v)

    def predict_perturbed(self, x_t: Tensor, t: Tensor, y: Condition | None, perturbation: Perturbation) -> Prediction:
        return self(x_t, t, y, perturbation)
