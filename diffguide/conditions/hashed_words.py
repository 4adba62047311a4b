"""The words of a text, by a hash of their bytes: a vocabulary without a list of words."""

import torch
from torch import Tensor, nn

__all__ = ["HashedWords"]

MODULUS = 2**31 - 1  # prime, so that the product of two residues fits 64 bits
BASE = 1_103_515_245
END = 256  # the first value that is no byte


class HashedWords(nn.Module):
    """norm(mean over words of table[hash(word) mod rows]), [B, features]: which words a text has, in any order.

    A word is a run of ASCII letters, digits and bytes from 128, which UTF-8 has in all other letters; ASCII's upper case counts
    as lower case. Each character of three or more bytes from U+3000 on begins a word, as Chinese and Japanese have no spaces.
    The hash of bytes b_0, b_1, ... is sum_i (b_i + 1) BASE^i mod MODULUS. Two words that share a row of the table are one word
    for the network: with as many rows as words a word shares its row in 63 % of the cases, with a hundred times as many in 1 %.

    Words found by a convolution are learned from pictures; a hash tells them apart from the first step. Joulin et al., "Bag of
    tricks for efficient text classification", 2016, arXiv 1607.01759, section 2.2, hash n-grams so.

    Arguments:
        rows: of the table.
        features: length of the vector of a word.
        length: bytes of a text at most.
    """

    powers: Tensor
    inverse_powers: Tensor

    def __init__(self, rows: int, features: int, length: int):
        super().__init__()
        self.table = nn.Embedding(rows, features)
        self.norm = nn.LayerNorm(features)
        for name, base in ("powers", BASE), ("inverse_powers", pow(BASE, -1, MODULUS)):
            self.register_buffer(name, torch.tensor([pow(base, i, MODULUS) for i in range(length)]), persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        rows, present = self.find_words(codes)
        weight = present[:, :, None].to(self.table.weight.dtype)
        return self.norm((self.table(rows) * weight).sum(1) / weight.sum(1).clamp_min(1))

    def find_words(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """(Rows of the table, whether there is a word) [B, L - 1] of codes [B, L]: bytes, or no byte if negative or 256 on."""
        codes = codes.long()
        codes = torch.where((codes >= ord("A")) & (codes <= ord("Z")), codes + 32, codes)
        letter = (codes >= ord("a")) & (codes <= ord("z")) | (codes >= ord("0")) & (codes <= ord("9"))
        inside = letter | (codes >= 128) & (codes < END)
        before = torch.nn.functional.pad(inside[:, :-1], (1, 0))
        first = inside & (~before | (codes >= 0xE3))
        number = torch.where(inside, first.long().cumsum(1), 0)  # of the word, from 1; 0 = in none
        powers, inverse_powers = (each[: codes.shape[1]] for each in (self.powers, self.inverse_powers))
        nothing = torch.zeros_like(codes)
        sums = nothing.scatter_add(1, number, (codes + 1) * powers % MODULUS)
        shifts = nothing.scatter_add(1, number, torch.where(first, inverse_powers, 0))
        hashed = sums % MODULUS * shifts % MODULUS
        return (hashed % self.table.num_embeddings)[:, 1:], (shifts > 0)[:, 1:]
