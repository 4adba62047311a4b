"""What a run counts of its models."""

from torch import Tensor

__all__ = ["Tally"]


class Tally:
    """Numbers of evaluations so far, one per row.

    Attributes:
        evaluations: of denoisers and energies.
        potential_evaluations: of classifiers and other potentials.
        backward_passes: through denoisers, for the divergence of their prediction.
        means: quantity -> noise level -> [sum, count] of what a sampler states of its chains; {} = nothing.
    """

    evaluations = 0
    potential_evaluations = 0
    backward_passes = 0

    def __init__(self) -> None:
        self.means: dict[str, dict[float, list[float]]] = {}

    def record(self, quantity: str, noise_level: float, values: Tensor) -> None:
        """Adds values, a tensor of any shape, to the mean of a quantity at a noise level."""
        mean = self.means.setdefault(quantity, {}).setdefault(noise_level, [0.0, 0.0])
        mean[0] += float(values.sum())
        mean[1] += values.numel()
