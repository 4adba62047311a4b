"""The joint energy can use noise levels that adapt to the loss."""

import torch

from diffguide.backbones import MLP
from diffguide.objectives import EnergyObjective
from diffguide.objectives.resampling import LossSecondMoment
from diffguide.objectives.weights import Uniform
from diffguide.schedules import Cosine


def test_adaptive_levels_observe_the_losses_of_training():
    """Only those of training steps; the loss is weighted by the importance."""
    torch.manual_seed(0)
    levels = LossSecondMoment(2, 4, 0.1, True)
    made = EnergyObjective(MLP(2, 3, 0, 8, 1, 4, 0.5), Cosine(12.0, -10.0), Uniform(), levels, 1.0, 0.5, 0.3).train()
    x, y, rng = torch.randn(8, 2), torch.arange(8) % 3, torch.Generator()

    def losses() -> torch.Tensor:
        return made(x, y, rng.manual_seed(1)).per_example.detach()

    with torch.no_grad():
        losses()
    assert not levels.waiting
    plain = losses()
    made.finish_step(lambda tensor: tensor)
    assert levels.count.tolist() == [4, 4]
    made.eval()
    levels.importance = lambda t: torch.linspace(1, 2, len(t), dtype=torch.float64)
    torch.testing.assert_close(losses(), plain * torch.linspace(1, 2, 8))
