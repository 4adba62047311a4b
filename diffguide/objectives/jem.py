"""Joint energy models: class logits trained as an energy, by Langevin chains from a replay buffer."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..backbones import Backbone
from ..backbones.conditions import Condition
from ..models.joint_energy import JointEnergy, joint_log_density
from ..models.level_classifier import check_langevin_step, langevin_step
from ..randomness import Share, normal, uniform
from ..runtime.ranges import check_range, check_whole
from ..schedules import NoSchedule, Schedule
from .base import Diverged, Loss, Objective, label_log_prob, require_labels

__all__ = ["JEM"]


class JEM(Objective):
    """ce_weight CE + ml_weight (E(x) - E(x')) + energy_l2 (E(x)^2 + E(x')^2), x' the ends of Langevin chains on the energy.

    Grathwohl, Wang, Jacobsen, Duvenaud, Norouzi, Swersky, "Your Classifier is Secretly an Energy Based Model and You Should
    Treat it Like One", 2020, arXiv 1912.03263, algorithm 1. If the chains have converged, the gradient of the second term is
    that of -log p. Conditional: E = -f(x)[y], with chains of p(x | y) for the batch's classes; else E = -logsumexp f(x), with
    chains of p(x). Chains continue from a replay buffer (Tieleman 2008; Du & Mordatch 2019, arXiv 1903.08689, as is the
    penalty) or restart uniform in [-1, 1]. The held-out loss is the cross-entropy.

    Arguments:
        backbone: network (x, None, None) -> f [B, number of classes], without noise input.
        schedule: NoSchedule or None, since there are no noise levels.
        ce_weight, ml_weight, energy_l2: of the terms, at least 0, the first two not both 0; ml_weight = 0 runs no chains and
            trains a plain classifier.
        conditional: whether the energy is that of (x, y).
        steps: of a chain per training step, at least 1.
        step_size, noise_scale: as in `samplers.SGLD`.
        size: chains in the buffer, at least the number of classes.
        reinit: probability of restarting a chain, in [0, 1]; 1 = always (short-run chains, Nijkamp et al. 2019, arXiv
            1904.09770).
        noise: standard deviation of the noise on the data, at least 0.
        max_gap: largest difference of the mean energies of data and samples, above 0.
        max_restores: how often a diverged run restarts from its last checkpoint, at least 0.

    Raises:
        ValueError: a schedule, or a backbone that `JointEnergy` rejects; from remember: a buffer of another size or shape.
        Diverged: from finish_step, energies further apart than max_gap.
    """

    compilable = divisible = False
    model: JointEnergy

    def __init__(
        self,
        backbone: Backbone,
        schedule: Schedule | None = None,
        ce_weight: float = 1.0,
        ml_weight: float = 1.0,
        energy_l2: float = 0.1,
        conditional: bool = True,
        steps: int = 40,
        step_size: float = 1.0,
        noise_scale: float | None = 0.01,
        size: int = 10000,
        reinit: float = 0.05,
        noise: float = 0.03,
        max_gap: float = 50.0,
        max_restores: int = 5,
    ):
        super().__init__()
        if schedule is not None and not isinstance(schedule, NoSchedule):
            raise ValueError(f"objective=jem has no noise levels, got {type(schedule).__name__}: take schedule=none")
        self.model = JointEnergy(backbone)
        self.ce_weight = check_range("ce_weight", ce_weight, "[0, inf)")
        self.ml_weight = check_range("ml_weight", ml_weight, "[0, inf)")
        self.energy_l2 = check_range("energy_l2", energy_l2, "[0, inf)")
        if not ce_weight and not ml_weight:
            raise ValueError("ce_weight and ml_weight must not both be 0")
        self.conditional = conditional
        self.steps = check_whole("steps", steps, 1)
        self.step_size, self.noise_scale = check_langevin_step(step_size, noise_scale)
        self.size = check_whole("size", size, self.model.num_classes)
        self.reinit = check_range("reinit", reinit, "[0, 1]")
        self.noise = check_range("noise", noise, "[0, inf)")
        self.max_gap = check_range("max_gap", max_gap, "(0, inf]")
        self.max_restores = check_whole("max_restores", max_restores, 0)
        self.buffer: Tensor | None = None  # [size, ...], in no state_dict; row i is of class i modulo num_classes
        self.gap: Tensor | None = None

    def forward(self, x_0: Tensor, y: Condition | None, rng: torch.Generator | Share) -> Loss:
        model = self.model
        labels = require_labels(y)
        classes = labels if self.conditional else None
        learning = self.training and torch.is_grad_enabled()
        x = x_0 + self.noise * normal(x_0.shape, rng, x_0.dtype) if learning else x_0
        logits = model.logits(x)
        log_prob = logits.log_softmax(1)
        ce = -label_log_prob(log_prob, labels) * (labels >= 0).to(logits)
        energy = -joint_log_density(logits, classes)
        terms = {"ce": ce.detach(), "accuracy": (log_prob.argmax(1) == labels).to(ce), "energy_data": energy.detach()}
        if not learning:
            return Loss(ce, terms)
        if not self.ml_weight:
            return Loss(self.ce_weight * ce + self.energy_l2 * energy.square(), terms)
        of_samples = -model.log_density(self.draw_samples(x, labels, rng), None, classes)
        self.gap = (energy.detach().mean() - of_samples.detach().mean()).abs()
        size = self.energy_l2 * (energy.square() + of_samples.square())
        terms["energy_samples"] = of_samples.detach()
        return Loss(self.ce_weight * ce + self.ml_weight * (energy - of_samples) + size, terms)

    def draw_samples(self, x: Tensor, y: Tensor, rng: torch.Generator | Share) -> Tensor:
        """Runs a chain per example of x [B, ...] and stores its end in the buffer, in place of its start."""
        if self.buffer is None:
            generator = rng.generator if isinstance(rng, Share) else rng
            start = torch.rand((self.size, *x.shape[1:]), generator=generator, device=rng.device)
            self.buffer = 2 * start - 1
        self.buffer = self.buffer.to(x)
        rows = self.draw_rows(y, rng)
        new = (uniform((len(x),), rng, torch.float32) < self.reinit).reshape(-1, *[1] * (x.ndim - 1))
        samples = torch.where(new, 2 * uniform(x.shape, rng, x.dtype) - 1, self.buffer[rows])
        classes = y if self.conditional else None
        learning = self.model.training
        self.model.eval()  # chains sample the energy without dropout
        for _ in range(self.steps):
            z = normal(x.shape, rng, x.dtype)
            samples = langevin_step(
                lambda x: self.model.log_density(x, None, classes), samples, self.step_size, self.noise_scale, z
            )
        self.model.train(learning)
        self.store(self.buffer, rows, samples)
        return samples

    def draw_rows(self, y: Tensor, rng: torch.Generator | Share) -> Tensor:
        """A random buffer row for every example, [B]; with conditional chains, one of its class."""
        u = uniform((len(y),), rng, torch.float64)
        classes = self.model.num_classes
        anywhere = (u * self.size).long()
        if not self.conditional:
            return anywhere
        return torch.where(y < 0, anywhere, (u * (self.size // classes)).long() * classes + y)

    def store(self, buffer: Tensor, rows: Tensor, samples: Tensor) -> None:
        """Writes samples into the buffer; the last of several samples for one row is kept, on every device."""
        order = torch.arange(len(rows), device=rows.device)
        last = torch.full((self.size,), -1, device=rows.device).scatter_reduce(0, rows, order, "amax")
        places = (last >= 0).nonzero()[:, 0]
        buffer[places] = samples[last[places]]

    def figures(self, loss: Loss) -> dict[str, float]:
        """Accuracy, log-loss and mean energy."""
        found = {"accuracy": loss.terms["accuracy"], "nll": loss.terms["ce"], "energy": loss.terms["energy_data"]}
        return {name: float(value.mean()) for name, value in found.items()}

    def finish_step(self, gather: Callable[[Tensor], Tensor]) -> None:
        if self.gap is not None and self.gap > self.max_gap:
            raise Diverged(
                f"the mean energies of data and samples differ by {float(self.gap):.4g}, more than "
                f"objective.max_gap={self.max_gap:g}"
            )

    def memory(self) -> dict[str, Tensor]:
        return {} if self.buffer is None else {"buffer": self.buffer}

    def remember(self, memory: dict[str, Tensor], shape: Sequence[int]) -> None:
        found = {name: [*value.shape] for name, value in memory.items()}
        if found not in ({}, {"buffer": [self.size, *shape]}):
            raise ValueError(f"the replay buffer is {found}, this objective needs one of {[self.size, *shape]}")
        if not all(value.is_floating_point() and value.isfinite().all() for value in memory.values()):
            raise ValueError("the replay buffer holds numbers that are not finite")
        self.buffer = memory["buffer"].clone() if memory else None
