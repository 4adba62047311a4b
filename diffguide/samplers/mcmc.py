"""Markov chains at the levels of another sampler: annealed MCMC, and predictor-corrector guidance."""

import math

import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..models.evaluation_counters import without_guidance
from ..models.level_classifier import value_and_gradient
from ..models.protocols import Denoiser, Energy
from ..runtime.ranges import check_whole
from .ancestral import DDIM
from .base import LawSampler, Memory, Sampler
from .chains import Chain, Law, Point
from .langevin import MAX_CORRECTIONS, AnnealedLangevin, LangevinPC
from .noise import StepNoise

__all__ = ["MCMC"]

ACCEPTANCE = "acceptance"
MALA = Chain()


class MCMC(LawSampler):
    """A step of another sampler, then steps of a Markov chain on the law that guidance names at the level that it reaches.

    Du, Durkan, Strudel, Tenenbaum, Dieleman, Fergus, Sohl-Dickstein, Doucet, Grathwohl, "Reduce, Reuse, Recycle:
    Compositional Generation with Energy-Based Diffusion Models and MCMC", 2023, arXiv 2302.11552. The law at a level is
    prod_i p_t(x | c_i)^w_i, whose score is the guided one; at the last level it is the law that guidance names. With
    acceptance the chain leaves it unchanged for any step size, which needs the log-densities of all sides: oracles, and
    models of objective=cdm, energy and tre.

    Predictor-corrector guidance is the same with `guided_moves=False`, DDIM inside, and one Langevin step without acceptance
    of the step size None. Bradley & Nakkiran, "Classifier-Free Guidance is a Predictor-Corrector", 2024, arXiv 2408.09000: as
    steps shrink it is CFG with DDPM of the scale gamma where the law has the scale 2 gamma - 1. Their step
    x + (beta dt / 2) score + sqrt(beta dt) z has e = beta dt / 2, where beta dt = sigma_s^2 (1 - SNR_t / SNR_s) to first order.

    Arguments:
        inner: the sampler of the moves between levels, with its steps and grid; None = `DDIM()`.
        chain: of the steps at a level.
        corrections: steps of the chain per level, 1 to 10^4, more than the chain adapts its step size with.
        every: the chain runs at every k-th level, the last one included; k divides the steps of the grid.
        guided_moves: whether the moves follow the guidance; False = the model without guidance, with its condition.

    Raises:
        ValueError: a sampler inside with chains of its own; too few corrections; from `times`, acceptance for a law without a
            log-density, or a number of steps that `every` does not divide.
    """

    def __init__(
        self,
        inner: Sampler | None = None,
        chain: Chain = MALA,
        corrections: int = 10,
        every: int = 1,
        guided_moves: bool = True,
    ):
        inner = DDIM() if inner is None else inner
        super().__init__(inner)
        if isinstance(inner, LangevinPC | AnnealedLangevin | MCMC):  # both would draw the same noise at the same level
            raise ValueError(
                f"inner must be a sampler without Langevin steps, got {type(inner).__name__}: set corrections instead"
            )
        self.chain, self.guided_moves = chain, guided_moves
        self.corrections = check_whole("corrections", corrections, 1, MAX_CORRECTIONS)
        self.every = check_whole("every", every, 1)
        if corrections <= chain.burn_in:
            raise ValueError(
                f"corrections must be more than chain.burn_in, whose steps adapt the step size, got {corrections} and "
                f"{chain.burn_in}"
            )

    def check(self, denoiser: Denoiser | Energy) -> None:
        super().check(denoiser)
        self.inner.check(denoiser)
        assert isinstance(denoiser, Denoiser)
        reason = denoiser.explain_no_density() if self.chain.adjusted else None
        if reason is not None:
            raise ValueError(
                f"acceptance needs a log-density at every noise level: {reason}; oracles and models of objective=cdm, energy "
                "and tre have one, other models take sampler/chain=ula or uhmc"
            )

    def times(self, denoiser: Denoiser | Energy) -> Tensor:
        self.check(denoiser)
        times = self.inner.times(denoiser)
        if (len(times) - 1) % self.every:
            raise ValueError(f"every must divide the number of steps, {len(times) - 1}, got {self.every}")
        return times

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, y: Condition | None, noise: StepNoise, memory: Memory
    ) -> Tensor:
        mover, condition = denoiser, y
        if not self.guided_moves:
            mover = without_guidance(denoiser)
            condition = y if mover.conditional else None
        inner = memory.setdefault("inner", {})
        x = self.inner(mover, x, torch.stack([t, s]), condition, noise, memory=inner)
        memory["moves"] = memory.get("moves", 0) + 1
        if memory["moves"] % self.every or denoiser.schedule.alpha_sigma(s)[1] == 0:
            return x
        inner.clear()  # values of another path
        return self.run_chain(denoiser, x, t, s, y, noise, memory)

    def run_chain(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, y: Condition | None, noise: StepNoise, memory: Memory
    ) -> Tensor:
        """x after the chain at level s, which the move from t reached."""
        schedule, chain = denoiser.schedule, self.chain
        alpha, sigma = (float(scale) for scale in schedule.alpha_sigma(s))
        log_step = memory.get("log step")
        if log_step is None or chain.step_size is None:
            size = chain.step_size or -0.5 * math.expm1(float(schedule.log_snr(t) - schedule.log_snr(s)))
            log_step = torch.full((len(x),), math.log(size), dtype=torch.float64, device=x.device)
        law = (density_law if chain.adjusted else prediction_law)(denoiser, s, y)
        moved = chain.run(law, x, math.hypot(sigma, alpha * chain.width), noise, s, self.corrections, log_step)
        memory["log step"] = moved.log_step
        if moved.acceptance is not None and denoiser.tally is not None:
            denoiser.tally.record(ACCEPTANCE, sigma / alpha, moved.acceptance)
        return moved.x


def density_law(denoiser: Denoiser, t: Tensor, y: Condition | None) -> Law:
    """The law of a guided model by its log-density."""

    def evaluate(x: Tensor) -> Point:
        value, slope = value_and_gradient(lambda x: denoiser.guided_log_density(x, t, y), x)
        return Point(x, slope.to(x), value)

    return evaluate


def prediction_law(denoiser: Denoiser, t: Tensor, y: Condition | None) -> Law:
    """The score of a guided model, -eps / sigma at alpha x_0 + sigma eps, which is x where the fields agree."""
    alpha, sigma = denoiser.schedule.alpha_sigma(t)

    def evaluate(x: Tensor) -> Point:
        prediction = denoiser(x, t, y)
        return Point(alpha * prediction.x_0 + sigma * prediction.eps, -prediction.eps / sigma)

    return evaluate
