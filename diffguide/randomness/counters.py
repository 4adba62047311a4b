"""A counter-based generator: numbers that are a function of a 64-bit state, so that no generator state is stored.

SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014) in int64 arithmetic modulo
2^64, which is the same on every device. Its 64 bits are two uniforms for Box-Muller.
"""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

__all__ = ["add_normals_", "create_states", "fold", "fold_in", "normals"]

BLOCK_PAIRS = 1 << 16  # drawn at once on a CPU: their temporaries stay in its cache; accelerators draw all at once
LOW_HALF = (1 << 32) - 1
ALL_BITS = (1 << 64) - 1
GOLDEN_GAMMA = 0x9E3779B97F4A7C15
FIRST_MULTIPLIER, SECOND_MULTIPLIER = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def signed(word: int) -> int:
    """The int64 with the bits of an unsigned 64-bit word."""
    return word - (word >> 63 << 64)


def xor_shift_(z: Tensor, bits: int) -> Tensor:
    """z ^= z >> bits in place, with the shift of an unsigned number."""
    return z.bitwise_xor_((z >> bits).bitwise_and_(ALL_BITS >> bits))


def scramble_(z: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64, in place."""
    z = xor_shift_(z, 30).mul_(signed(FIRST_MULTIPLIER))
    return xor_shift_(xor_shift_(z, 27).mul_(signed(SECOND_MULTIPLIER)), 31)


def fold_in(state: Tensor, word: int | Tensor) -> Tensor:
    """A new state, int64, from a state and a 64-bit word; broadcasts."""
    word = word if isinstance(word, Tensor) else torch.tensor(signed(word & ALL_BITS), device=state.device)
    mixed = (state ^ scramble_(word + signed(GOLDEN_GAMMA))).mul_(2).add_(signed(GOLDEN_GAMMA))
    return scramble_(mixed)


def scramble(z: int) -> int:
    """SplitMix64's finaliser on an unsigned 64-bit word."""
    z = (z ^ z >> 30) * FIRST_MULTIPLIER & ALL_BITS
    z = (z ^ z >> 27) * SECOND_MULTIPLIER & ALL_BITS
    return z ^ z >> 31


def fold(*words: int) -> int:
    """One seed in [0, 2^63) from several non-negative integers, e.g. (seed, rank, step).

    In Python integers: the same arithmetic on a tensor of one element takes 20 times as long.
    """
    state = 0
    for word in words:
        word = scramble((word + GOLDEN_GAMMA) & ALL_BITS)
        state = scramble(((state ^ word) * 2 + GOLDEN_GAMMA) & ALL_BITS)
    return state >> 1


def create_states(seeds: Iterable[int], device: torch.device | str = "cpu") -> Tensor:
    """A state per seed, int64 [B], from non-negative integers below 2^64."""
    words = torch.tensor([signed(int(seed)) for seed in seeds], dtype=torch.int64, device=device)
    return fold_in(torch.zeros_like(words), words)


def normals(states: Tensor, size: int) -> Tensor:
    """Standard normals [..., size] in float32, a function of each state in `states` [...], on its device."""
    out = torch.empty(states.numel(), size, device=states.device)
    for rows, drawn in draw_blocks(states, size):
        out[rows] = drawn
    return out.reshape(*states.shape, size)


def add_normals_(x: Tensor, states: Tensor, scale: float) -> Tensor:
    """x += scale normals(states), in place and without a tensor of all normals; x [B, size], states [B]."""
    for rows, drawn in draw_blocks(states, x.shape[1]):
        x[rows].add_(drawn, alpha=scale)
    return x


def draw_blocks(states: Tensor, size: int) -> Iterator[tuple[slice, Tensor]]:
    """Rows of states and their normals [b, size], block by block."""
    pairs, flat = (size + 1) // 2, states.reshape(-1, 1)
    counters = torch.arange(1, pairs + 1, device=states.device) * signed(GOLDEN_GAMMA)
    count = max(1, BLOCK_PAIRS // max(1, pairs)) if states.device.type == "cpu" else len(flat)
    for first in range(0, len(flat), count):
        rows = slice(first, first + count)
        yield rows, draw_pairs(flat[rows] + counters)[:, :size]


def draw_pairs(z: Tensor) -> Tensor:
    """Box-Muller's two normals of every counter: float32 [B, 2 n] from int64 [B, n], which is overwritten."""
    z = scramble_(z)
    angle = (z & LOW_HALF).float().mul_(2 * math.pi * 2.0**-32)
    high = z.bitwise_right_shift_(32).bitwise_and_(LOW_HALF).float()
    radius = high.add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    return torch.cat([angle.cos().mul_(radius), angle.sin_().mul_(radius)], dim=-1)
