"""A counter-based generator: numbers that are a function of a 64-bit state, so that nothing is stored.

SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014) in int64 arithmetic modulo
2^64, which is the same on every device. Its 64 bits are split into two uniforms for Box-Muller.
"""

import math

import torch
from torch import Tensor

__all__ = ["fold", "fold_in", "normals", "states_of"]

BLOCK_ELEMENTS = 1 << 17  # of a block whose temporaries stay in a processor's cache; accelerators take all at once
LOW_HALF = (1 << 32) - 1


def signed(word: int) -> int:
    """The int64 with the same 64 bits as a word modulo 2^64."""
    return (word + 2**63) % 2**64 - 2**63


GOLDEN_GAMMA = signed(0x9E3779B97F4A7C15)
FIRST_MULTIPLIER, SECOND_MULTIPLIER = signed(0xBF58476D1CE4E5B9), signed(0x94D049BB133111EB)


def xor_shifted_(z: Tensor, bits: int, scratch: Tensor) -> Tensor:
    """z ^= z >> bits, the shift of an unsigned number, in place."""
    torch.bitwise_right_shift(z, bits, out=scratch)
    return z.bitwise_xor_(scratch.bitwise_and_((1 << (64 - bits)) - 1))


def scramble_(z: Tensor, scratch: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64 modulo 2^64, in place."""
    xor_shifted_(z, 30, scratch).mul_(FIRST_MULTIPLIER)
    xor_shifted_(z, 27, scratch).mul_(SECOND_MULTIPLIER)
    return xor_shifted_(z, 31, scratch)


def fold_in(state: Tensor, word: int | Tensor) -> Tensor:
    """A new state, int64, from a state and a 64-bit word; broadcasts."""
    words = torch.as_tensor(word if isinstance(word, Tensor) else signed(word), device=state.device) + GOLDEN_GAMMA
    mixed = (state ^ scramble_(words, torch.empty_like(words))) * 2 + GOLDEN_GAMMA
    return scramble_(mixed, torch.empty_like(mixed))


def fold(*words: int) -> int:
    """One seed in [0, 2^63) from several non-negative integers, e.g. (seed, rank, step)."""
    state = torch.zeros((), dtype=torch.int64)
    for word in words:
        state = fold_in(state, word)
    return (int(state) % 2**64) >> 1


def states_of(seeds) -> Tensor:
    """A state per seed, int64 [B], from non-negative integers below 2^64."""
    words = torch.tensor([signed(int(seed)) for seed in seeds], dtype=torch.int64)
    return fold_in(torch.zeros_like(words), words)


def normals(states: Tensor, size: int) -> Tensor:
    """Standard normals [..., size] in float32, a function of each state in `states` [...], on its device."""
    pairs, flat = (size + 1) // 2, states.reshape(-1)
    counters = torch.arange(1, pairs + 1, device=states.device) * GOLDEN_GAMMA
    out = torch.empty(len(flat), size, device=states.device)
    rows = max(1, BLOCK_ELEMENTS // max(pairs, 1)) if states.device.type == "cpu" else len(flat)
    buffers = [
        torch.empty(min(rows, len(flat)), pairs, dtype=dtype, device=states.device)
        for dtype in (torch.int64, torch.int64, torch.float32, torch.float32)
    ]
    for first in range(0, len(flat), max(rows, 1)):
        block = flat[first : first + rows, None]
        fill_normals(out[first : first + rows], block, counters, *(buffer[: len(block)] for buffer in buffers))
    return out.reshape(*states.shape, size)


def fill_normals(out: Tensor, states: Tensor, counters: Tensor, z: Tensor, scratch: Tensor, u: Tensor, v: Tensor) -> None:
    """Box-Muller's normals [rows, size] of states [rows, 1]; the last four arguments are buffers [rows, (size + 1) / 2]."""
    scramble_(torch.add(states, counters, out=z), scratch)
    u.copy_(torch.bitwise_and(z, LOW_HALF, out=scratch))
    v.copy_(z.bitwise_right_shift_(32).bitwise_and_(LOW_HALF))
    angle, radius = u.mul_(2 * math.pi * 2.0**-32), v.add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    pairs = radius.shape[1]
    out[:, :pairs] = angle.cos().mul_(radius)
    out[:, pairs:] = angle.sin_().mul_(radius)[:, : out.shape[1] - pairs]
