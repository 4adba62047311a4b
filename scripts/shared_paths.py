"""How far samples of n and of 2 n steps from the same seeds lie apart, by depth of the Brownian path's tree.

    python scripts/shared_paths.py [--depths 3 4 5 12]

Stochastic samplers on `oracle=gaussian_mixture`, exact in everything but the steps. Distance: root mean square over 4,000
samples. The last column has other noise in the second run, so that the two runs share x_T alone. A tree that is deep enough
(12) leaves the error of the steps. Takes a minute on one core.
"""

import argparse

import torch
from torch import Tensor

from diffguide.oracles import GaussianMixture
from diffguide.randomness import Noise
from diffguide.samplers import DDPM, DPMpp2MSDE, EulerMaruyama, Sampler

SAMPLES = 4000
SAMPLERS = {"ddpm": DDPM, "euler_maruyama": EulerMaruyama, "dpmpp_2m_sde": DPMpp2MSDE}
STEPS = (16, 32, 64, 125)
ORACLE = GaussianMixture()


def draw(sampler: Sampler, depth: int, first_seed: int = 0) -> Tensor:
    """Samples [n, 2] in float64, from the x_T of the seeds 0 to n - 1 and noise of the seeds from `first_seed` on."""

    def noise(first: int) -> Noise:
        return Noise(range(first, first + SAMPLES), (2,), ORACLE.schedule, dtype=torch.float64, depth=depth)

    times = sampler.times(ORACLE)
    return sampler(ORACLE, noise(0).normal(float(times[0]), 0), times, None, noise(first_seed))


def distance(x: Tensor, y: Tensor) -> float:
    return float((x - y).square().sum(1).mean().sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", nargs="+", type=int, default=[3, 4, 5, 12], help="of the tree")
    depths = parser.parse_args().depths
    torch.set_num_threads(1)
    print(f"| sampler | steps | {' | '.join(f'depth {depth}' for depth in depths)} | other noise |")
    print("|---" * (len(depths) + 3) + "|")
    for name, build in SAMPLERS.items():
        for steps in STEPS:
            coarse, fine = build(steps=steps), build(steps=2 * steps)
            found = [distance(draw(coarse, depth), draw(fine, depth)) for depth in depths]
            other = distance(draw(coarse, depths[-1]), draw(fine, depths[-1], first_seed=SAMPLES))
            print(
                f"| {name} | {steps}, {2 * steps} | {' | '.join(f'{value:.3f}' for value in [*found, other])} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
