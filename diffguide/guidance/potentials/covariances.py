"""Posteriors of linear inverse problems with a covariance V of x_0 given x_t: D + V A^T (s^2 + A V A^T)^-1 (y - A D).

D is the network's E[x_0 | x_t]. The three methods differ in V: V = (sigma^2 / alpha) J, J the Jacobian of D, is exact.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...backbones.conditions import Condition
from ...models.evaluation_counters import count_potential
from ...models.protocols import Denoiser, Prediction
from ...runtime.ranges import check_range, check_whole
from ...schedules import EVERYWHERE
from ..rules import inner
from .base import PotentialGuidanceBase
from .inverse import LinearProblem
from .posteriors import choose_problem, denoised_variance

__all__ = ["JFPS", "MMPS", "TMPD"]


def solve_conjugate(multiply: Callable[[Tensor], Tensor], right: Tensor, iterations: int) -> Tensor:
    """v with multiply(v) = right, of a symmetric positive definite map of the rows [B, ...], each by itself.

    Hestenes & Stiefel, "Methods of conjugate gradients for solving linear systems", 1952, from v = 0; exact after as many
    iterations as a row has values. A row whose residual is 0 stays.
    """
    v, residual, direction = torch.zeros_like(right), right, right
    square = inner(residual, residual)
    for _ in range(iterations):
        product = multiply(direction)
        curvature = inner(direction, product)
        step = torch.where(curvature > 0, square / curvature, 0.0)
        v, residual = v + step * direction, residual - step * product
        following = inner(residual, residual)
        direction = residual + torch.where(square > 0, following / square, 0.0) * direction
        square = following
    return v


class CovarianceGuidance(PotentialGuidanceBase):
    """Base of the methods with V = (sigma^2 / alpha) J, which is symmetric for an exact denoiser: J^T v is one backward pass.

    Arguments:
        denoiser: one whose prediction can be differentiated.
        potential: the inverse problem; None = `Inpaint()`.
        scale: w; 0 = off, 1 = Bayes.
        interval: (lo, hi] in noise level sigma / alpha.

    Raises:
        ValueError: a potential that is not a linear inverse problem.
    """

    option = ""

    def __init__(
        self,
        denoiser: Denoiser,
        potential: LinearProblem | None = None,
        scale: float = 1.0,
        interval: Sequence[float] = EVERYWHERE,
    ):
        potential = choose_problem(f"guidance={self.option}", potential, LinearProblem)
        super().__init__(denoiser, potential, scale, interval)
        self.problem = potential

    def guide(self, x_t: Tensor, t: Tensor, y: Condition | None, graph: bool) -> tuple[Prediction, Prediction]:
        with torch.enable_grad():
            x, prediction = self.predict_with_graph(x_t, t, y, graph)
            mean = prediction.x_0
            alpha, sigma = self.scales(t, mean)

            def back(v: Tensor) -> Tensor:
                return torch.autograd.grad(
                    mean, x, self.problem.transpose(v, mean), retain_graph=True, create_graph=graph
                )[0]

            def measure_covariance(v: Tensor) -> Tensor:
                return self.problem.forward(sigma**2 / alpha * back(v))

            count_potential(self.denoiser, len(x))
            gradient = back(self.weigh(self.problem.residual(mean), measure_covariance))
        return prediction, self.apply_bayes(prediction, t, gradient)

    def weigh(self, residual: Tensor, measure_covariance: Callable[[Tensor], Tensor]) -> Tensor:
        """(s^2 + A V A^T)^-1 residual.

        Arguments:
            measure_covariance: v -> A V A^T v.
        """
        raise NotImplementedError


class MMPS(CovarianceGuidance):
    """Moment matching posterior sampling: V = (sigma^2 / alpha) J, the system solved by conjugate gradients.

    Rozet, Andry, Lanusse, Louppe, "Learning Diffusion Priors from Observations by Expectation Maximization", 2024, arXiv
    2405.13712; azula's code has 1 iteration too. Exact on Gaussian data of any covariance, with as many iterations
    as there are measured values. An iteration is one backward pass through the network.

    Arguments:
        denoiser, potential, scale, interval: as in `CovarianceGuidance`.
        iterations: of the conjugate gradients, at least 1.
    """

    option = "mmps"

    def __init__(
        self,
        denoiser: Denoiser,
        potential: LinearProblem | None = None,
        scale: float = 1.0,
        interval: Sequence[float] = EVERYWHERE,
        iterations: int = 1,
    ):
        self.iterations = check_whole("iterations", iterations, 1)
        super().__init__(denoiser, potential, scale, interval)

    def weigh(self, residual: Tensor, measure_covariance: Callable[[Tensor], Tensor]) -> Tensor:
        noise = self.problem.noise**2
        return solve_conjugate(lambda v: noise * v + measure_covariance(v), residual, self.iterations)


class TMPD(CovarianceGuidance):
    """Tweedie moment projected diffusion: A V A^T replaced by the diagonal of its row sums, V = (sigma^2 / alpha) J.

    Boys, Girolami, Pidstrigach, Reich, Mosca, Akyildiz, "Tweedie Moment Projected Diffusions For Inverse Problems", 2023, arXiv
    2310.06721, in the diagonal form of azula's code. Exact on Gaussian data where A V A^T is diagonal: independent values of
    which some are known.

    Arguments:
        denoiser, potential, scale, interval: as in `CovarianceGuidance`.
    """

    option = "tmpd"

    def weigh(self, residual: Tensor, measure_covariance: Callable[[Tensor], Tensor]) -> Tensor:
        return residual / (self.problem.noise**2 + measure_covariance(torch.ones_like(residual)))


class JFPS(PotentialGuidanceBase):
    """Jacobian-free posterior sampling: V = (1 / v + alpha^2 / sigma^2)^-1, the network is not differentiated.

    As in azula's code (azula.guidance.jfps), for data of covariance v I; the system is solved exactly. Exact on data N(m, v I),
    where it is `PiGDM`.

    Arguments:
        denoiser: any.
        potential: the inverse problem; None = `Inpaint()`.
        scale: w; 0 = off, 1 = Bayes.
        interval: (lo, hi] in noise level sigma / alpha.
        data_variance: v, prior variance of the data; positive.

    Raises:
        ValueError: a potential that is not a linear inverse problem.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        potential: LinearProblem | None = None,
        scale: float = 1.0,
        interval: Sequence[float] = EVERYWHERE,
        data_variance: float = 1.0,
    ):
        potential = choose_problem("guidance=jfps", potential, LinearProblem)
        super().__init__(denoiser, potential, scale, interval)
        self.problem = potential
        self.data_variance = check_range("data_variance", data_variance, "(0, inf)")

    def guide(self, x_t: Tensor, t: Tensor, y: Condition | None, graph: bool) -> tuple[Prediction, Prediction]:
        prediction = self.denoiser(x_t, t, y)
        mean = prediction.x_0
        variance = denoised_variance(self.schedule, t, self.data_variance, mean)
        count_potential(self.denoiser, len(mean))
        weighed = self.problem.solve(self.problem.residual(mean), variance)
        alpha, sigma = self.scales(t, mean)
        change = variance * self.problem.transpose(weighed, mean)
        return prediction, self.apply_bayes(prediction, t, alpha / sigma**2 * change)
