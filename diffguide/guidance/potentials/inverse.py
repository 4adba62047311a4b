"""Linear inverse problems as log-potentials: y = A x_0 + s z, f(x_0) = -|y - A x_0|^2 / (2 s^2)."""

import math

import torch
from torch import Tensor

from ...backbones.conditions import Condition
from ...models.protocols import SamplingError
from ...randomness import normal
from ...runtime.ranges import check_range, check_whole
from .pictures import DEFAULT_BOX, Mask, Picture, TestPicture
from .values import Potential

__all__ = ["Deblur", "Inpaint", "LinearProblem", "SuperResolution"]


class LinearProblem(Potential):
    """log N(y; A x_0, s^2) up to a constant: every row of a batch has the same measurement y.

    Arguments:
        picture: a clean picture to measure, or a measurement; None = `TestPicture()`.
        noise: s, standard deviation of the measurement noise, in the units of the data; positive.
        seed: of the measurement noise (simulated measurement only).

    Raises:
        ValueError: a picture that A does not take.
    """

    def __init__(self, picture: Picture | None = None, noise: float = 0.05, seed: int = 0):
        self.noise = check_range("noise", noise, "(0, inf)")
        check_whole("seed", seed, 0)
        picture = TestPicture() if picture is None else picture
        self.prepare(picture.values)
        if picture.measured:
            self.measurement = picture.values[None]
        else:
            clean = self.forward(picture.values[None])
            z = normal(clean.shape, torch.Generator().manual_seed(seed), torch.float64)
            self.measurement = clean + self.noise * self.project(z.to(clean))

    def prepare(self, values: Tensor) -> None:
        """Prepares A for the shape of the picture."""

    def forward(self, x: Tensor) -> Tensor:
        """A x of examples [B, ...]."""
        raise NotImplementedError

    def transpose(self, residual: Tensor, like: Tensor) -> Tensor:
        """A^T residual, in the shape of examples `like` [B, ...]."""
        with torch.enable_grad():
            zero = torch.zeros_like(like, requires_grad=True)
            return torch.autograd.grad(self.forward(zero), zero, residual, create_graph=residual.requires_grad)[0]

    def project(self, z: Tensor) -> Tensor:
        """The part of z [B, ...] in the range of A."""
        return z

    def solve(self, residual: Tensor, variance: Tensor | float) -> Tensor:
        """(variance A A^T + s^2)^-1 residual; variance a number or shaped to multiply x."""
        raise NotImplementedError

    def residual(self, x: Tensor) -> Tensor:
        """y - A x.

        Raises:
            SamplingError: examples of another shape than the measurement.
        """
        try:
            predicted = self.forward(x)
        except (RuntimeError, ValueError) as error:
            raise SamplingError(
                f"guidance.potential: {type(self).__name__} cannot measure {list(x.shape)}: {error}"
            ) from error
        if predicted.shape[1:] != self.measurement.shape[1:]:
            raise SamplingError(
                f"guidance.potential: {type(self).__name__} has a measurement of shape {list(self.measurement.shape[1:])}, "
                f"and measures samples of this model, {list(x.shape[1:])}, as {list(predicted.shape[1:])}"
            )
        return self.measurement.to(predicted) - predicted

    def distance(self, x: Tensor) -> Tensor:
        """|y - A x|, [B]."""
        return torch.linalg.vector_norm(self.residual(x).flatten(1), dim=1)

    def log_likelihood(self, x: Tensor, variance: Tensor | float) -> Tensor:
        """-|y - A x|^2 / 2 in the metric (variance A A^T + s^2)^-1: log N(y; A x, .) up to a constant in x."""
        residual = self.residual(x)
        return -0.5 * (residual * self.solve(residual, variance)).flatten(1).sum(1)

    def __call__(self, x: Tensor, y: Condition | None) -> Tensor:
        return self.log_likelihood(x, 0.0)


class Inpaint(LinearProblem):
    """A keeps the known values and sets the others to 0: y = m x_0 + s m z.

    Arguments:
        picture, noise, seed: see `LinearProblem`.
        mask: which values are known.

    Raises:
        ValueError: a mask that does not fit the picture, or hides all of it.
    """

    def __init__(self, picture: Picture | None = None, mask: Mask = DEFAULT_BOX, noise: float = 0.05, seed: int = 0):
        self.mask = mask
        super().__init__(picture, noise, seed)

    def prepare(self, values: Tensor) -> None:
        known = self.mask(values.shape)
        try:
            self.known = known.expand(values.shape)[None]
        except RuntimeError as error:
            raise ValueError(f"a mask {list(known.shape)} does not fit a picture {list(values.shape)}") from error
        if not bool(self.known.any()):
            raise ValueError(f"the mask hides every value of a picture {list(values.shape)}: nothing is known")

    def project(self, z: Tensor) -> Tensor:
        return z * self.known.to(z)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.known.shape[1:]:
            raise ValueError(f"its picture is {list(self.known.shape[1:])}")
        return x * self.known.to(x)

    def residual(self, x: Tensor) -> Tensor:
        return super().residual(x) * self.known.to(x)  # unknown values of a given measurement are arbitrary

    def solve(self, residual: Tensor, variance: Tensor | float) -> Tensor:
        return residual / (variance + self.noise**2)


class SuperResolution(LinearProblem):
    """A is the mean over squares of factor x factor pixels.

    Arguments:
        picture, noise, seed: see `LinearProblem`.
        factor: side of a square, pixels, at least 2; divides the sides of the images.
    """

    def __init__(self, picture: Picture | None = None, factor: int = 2, noise: float = 0.05, seed: int = 0):
        self.factor = check_whole("factor", factor, 2)
        super().__init__(picture, noise, seed)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ValueError(f"factor {self.factor} must divide the sides of images [C, H, W], got {list(x.shape[1:])}")
        return torch.nn.functional.avg_pool2d(x, self.factor)

    def solve(self, residual: Tensor, variance: Tensor | float) -> Tensor:
        return residual / (variance / self.factor**2 + self.noise**2)  # A A^T = 1 / factor^2


class Deblur(LinearProblem):
    """A is the circular convolution with a Gaussian, diagonal in Fourier space: h(k) = exp(-2 (pi width k)^2).

    Arguments:
        picture, noise, seed: see `LinearProblem`.
        width: standard deviation of the Gaussian, pixels, positive.
    """

    def __init__(self, picture: Picture | None = None, width: float = 1.0, noise: float = 0.05, seed: int = 0):
        self.width = check_range("width", width, "(0, inf)")
        super().__init__(picture, noise, seed)

    def response(self, x: Tensor) -> Tensor:
        """h at the frequencies of images [B, C, H, W], [H, W // 2 + 1]."""
        rows = torch.fft.fftfreq(x.shape[2], dtype=torch.float64)
        columns = torch.fft.rfftfreq(x.shape[3], dtype=torch.float64)
        square = rows[:, None] ** 2 + columns**2
        return (-2 * (math.pi * self.width) ** 2 * square).exp().to(x)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4:
            raise ValueError(f"only images [C, H, W] are blurred, got {list(x.shape[1:])}")
        return self.filter(x, self.response(x))

    def solve(self, residual: Tensor, variance: Tensor | float) -> Tensor:
        return self.filter(residual, 1 / (variance * self.response(residual) ** 2 + self.noise**2))

    def filter(self, x: Tensor, response: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * response, s=x.shape[2:])
