"""Texts as bytes, encoded by a small transformer that is trained with the network: any language, nothing to download."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..backbones.attention import attention
from ..backbones.conditioning import Conditioning, ConditionTable, Context, find_column
from ..backbones.conditions import Condition, RowCondition, TokenIds, TokenStates, check_rows
from ..runtime.ranges import check_whole
from .captions import CaptionTable, read_text
from .hashed_words import HashedWords

__all__ = ["ByteText", "EncodedText", "bytes_to_ids"]

PADDING, FIRST_BYTE, END = 0, 1, 257  # indices: byte b is b + 1
VOCABULARY = 258
WINDOW = 5  # bytes that a byte sees before it is merged


class EncodedText(RowCondition):
    """Texts encoded by a network, and its encoding of the empty text, which stands in rows without condition.

    Arguments:
        states, mask: [B, L, D] and [B, L] bool, of the tokens.
        pooled: [B, D].
        empty_states, empty_pooled: [B, D] both, of the one token of the empty text.
        keep: [B] bool.
    """

    names = ("states", "mask", "pooled", "empty_states", "empty_pooled")
    embeddings = TokenStates.embeddings

    def __init__(
        self, states: Tensor, mask: Tensor, pooled: Tensor, empty_states: Tensor, empty_pooled: Tensor, keep: Tensor
    ):
        check_rows("EncodedText", "states [B, L, D], mask [B, L]", mask.shape == states.shape[:2], keep, states, mask)
        self.states, self.mask, self.pooled, self.keep = states, mask, pooled, keep
        self.empty_states, self.empty_pooled = empty_states, empty_pooled


class TextBlock(nn.Module):
    """h = h + attend(norm(h)), then h = h + mlp(norm(h)), within the tokens of the mask (arXiv 1706.03762, norms first)."""

    def __init__(self, width: int, heads: int, double_differentiable: bool):
        super().__init__()
        self.heads, self.double_differentiable = heads, double_differentiable
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm_attention(h)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = attention(q, k, v, self.double_differentiable, mask)
        h = h + self.projection(attended.transpose(1, 2).flatten(2))
        return h + self.mlp(self.norm_mlp(h))


class TokenMerger(nn.Module):
    """Neighbouring tokens [B, L, D] into [B, L / stride, D]: h + gelu(a * h), then w * h with steps of `stride`.

    a is a convolution over `WINDOW` tokens, so that a token knows its neighbours, and w one over `stride` tokens. Clark et al.,
    "CANINE: pre-training an efficient tokenization-free encoder for language representation", 2021, arXiv 2103.06874, section
    3.2, merges characters by such a strided convolution, with local attention in place of a. Padding counts as 0.
    """

    def __init__(self, features: int, stride: int):
        super().__init__()
        self.neighbours = nn.Conv1d(features, features, WINDOW, padding=WINDOW // 2)
        self.merge = nn.Conv1d(features, features, stride, stride)

    def forward(self, h: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        stride = self.merge.kernel_size[0]
        padding = -h.shape[1] % stride
        mask = functional.pad(mask, (0, padding))
        present = mask[:, None].to(h.dtype)
        h = functional.pad(h, (0, 0, 0, padding)).transpose(1, 2) * present
        h = h + functional.gelu(self.neighbours(h), approximate="tanh") * present
        return self.merge(h).transpose(1, 2), mask.unflatten(1, (-1, stride)).any(2)


class WordDetectors(nn.Module):
    """What words a text has, wherever they stand: norm(max over bytes of gelu(a * h)), [B, count].

    a is a convolution over `WINDOW` bytes h [B, L, D], the maximum is over the bytes of the mask. Kim, "Convolutional Neural
    Networks for Sentence Classification", 2014, arXiv 1408.5882, eq. 2 and 3, with characters as in Zhang et al. 2015, arXiv
    1509.01626. A mean of tokens dilutes each word by all others, and bytes merge into other tokens where a word is shifted.
    """

    def __init__(self, features: int, count: int):
        super().__init__()
        self.convolution = nn.Conv1d(features, count, WINDOW, padding=WINDOW // 2)
        self.norm = nn.LayerNorm(count)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        present = mask[:, None]
        found = functional.gelu(self.convolution(h.transpose(1, 2) * present.to(h.dtype)), approximate="tanh")
        return self.norm(found.masked_fill(~present, -torch.inf).amax(2))


class ByteText(Conditioning):
    """The bytes of a text (UTF-8) and an end token through a transformer: a vector per token, and one of the whole text.

    The null condition is the empty text: the end token alone. A token is a byte, or `stride` bytes that are merged at the door:
    fewer tokens make attention to them cheaper, and words are found sooner. The vector of the text is the mean of its tokens,
    and beside it which words it has, by `words` that are hashed, by `detectors` that are learned, or by both.

    Arguments:
        length: bytes at most, the end among them.
        stride: bytes merged into a token, at least 1; 1 = every byte is a token.
        features: length of the vectors.
        layers: number of transformer blocks.
        heads: attention heads, divide `features`.
        column: of the data, with the texts of each example; training draws one of them in every epoch.
        double_differentiable: whether second derivatives are needed; slower attention.
        detectors: number of `WordDetectors`, whose features the vector of a text has besides; 0 = none.
        words: rows of the table of `HashedWords`, whose `features` the vector of a text has besides; 0 = none.

    Raises:
        ValueError: a number out of range.
    """

    reads_text = gives_vectors = True

    def __init__(
        self,
        length: int = 64,
        features: int = 128,
        layers: int = 2,
        heads: int = 4,
        column: str = "captions",
        double_differentiable: bool = False,
        stride: int = 4,
        detectors: int = 0,
        words: int = 0,
    ):
        super().__init__()
        self.length, self.column = check_whole("condition.length", length, 2), column
        check_whole("condition.layers", layers, 0)
        check_whole("condition.stride", stride, 1)
        check_whole("condition.detectors", detectors, 0)
        check_whole("condition.words", words, 0)
        if heads < 1 or features < 1 or features % heads:
            raise ValueError(f"condition.features must be a multiple of heads={heads}, at least 1, got {features}")
        self.vector_features, self.token_features = features + detectors + features * (words > 0), features
        self.tokens = nn.Embedding(VOCABULARY, features)
        self.positions = nn.Parameter(0.02 * torch.randn(-(-length // stride), features))
        self.merger = TokenMerger(features, stride) if stride > 1 else None
        self.blocks = nn.ModuleList(TextBlock(features, heads, double_differentiable) for _ in range(layers))
        self.norm = nn.LayerNorm(features)
        self.detectors = WordDetectors(features, detectors) if detectors else None
        self.words = HashedWords(words, features, length) if words else None

    def forward(self, y: Condition | None, x: Tensor) -> Context:
        y = TokenIds(empty_ids(len(x), 1, x.device)) if y is None else y
        if isinstance(y, TokenIds):
            return Context(*self.encode(kept_ids(y)))
        if not isinstance(y, EncodedText):
            raise ValueError(f"y must be TokenIds [B, L] for condition=text, got {type(y).__name__}")
        first = torch.arange(y.mask.shape[1], device=y.device) == 0
        states = torch.where(y.keep[:, None, None], y.states, y.empty_states[:, None])
        mask = torch.where(y.keep[:, None], y.mask, first)
        return Context(torch.where(y.keep[:, None], y.pooled, y.empty_pooled), states, mask)

    def encode(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(Pooled [B, `vector_features`], states [B, L / stride, D], mask [B, L / stride]) of indices [B, L], a token each."""
        h, mask = self.tokens(ids.long()), ids != PADDING
        words = [] if self.detectors is None else [self.detectors(h, mask)]
        words += [] if self.words is None else [self.words(ids - FIRST_BYTE)]
        if self.merger is not None:
            h, mask = self.merger(h, mask)
        h = h + self.positions[: h.shape[1]]
        for block in self.blocks:
            h = block(h, mask)
        h = self.norm(h)
        weight = mask[:, :, None].to(h.dtype)
        return torch.cat([(h * weight).sum(1) / weight.sum(1), *words], 1), h, mask

    def embed(self, y: Condition) -> RowCondition:
        if not isinstance(y, TokenIds):
            assert isinstance(y, RowCondition)
            return y
        pooled, states, mask = self.encode(kept_ids(y))
        empty_pooled, empty_states, _ = self.encode(empty_ids(1, 1, y.device))
        empty = empty_states[:, 0].expand(len(y), -1), empty_pooled.expand(len(y), -1)
        return EncodedText(states, mask, pooled, *empty, keep=y.keep)

    def explain(self) -> Mapping[str, str]:
        return {"ids": f"UTF-8 bytes, each + {FIRST_BYTE}, then {END}, then {PADDING} as padding; all 0 = no condition"}

    def tabulate(self, columns: Mapping[str, Any], labels: Tensor) -> ConditionTable:
        captions = find_column(columns, self.column, "condition=text")
        longest = max((text for given in captions for text in given), key=lambda text: len(text.encode()), default="")
        if (count := len(longest.encode())) >= self.length:
            raise ValueError(
                f"the longest text of the data has {count} bytes, but condition.length={self.length} allows {self.length - 1}: "
                f"set condition.length={count + 1}, or shorten {longest[:40]}..."
            )
        return CaptionTable(captions, self.read)

    def read(self, values: Sequence[Any]) -> TokenIds:
        """Texts; "" = no condition."""
        return TokenIds(bytes_to_ids([read_text(value) for value in values], self.length))


def empty_ids(rows: int, length: int, device: torch.device) -> Tensor:
    """[rows, length] indices of the empty text."""
    ids = torch.zeros(rows, length, dtype=torch.int16, device=device)
    ids[:, 0] = END
    return ids


def kept_ids(y: TokenIds) -> Tensor:
    """The indices of texts [B, L], with the empty text in rows without condition."""
    return torch.where(y.keep[:, None], y.ids, empty_ids(1, y.ids.shape[1], y.device))


def bytes_to_ids(texts: Sequence[str], length: int) -> Tensor:
    """[N, length] indices of texts: bytes, the end, padding; padding alone for an empty text.

    Raises:
        ValueError: a text that is too long.
    """
    encoded = [text.encode() for text in texts]
    for text, given in zip(texts, encoded):
        if len(given) >= length:
            raise ValueError(
                f"a text has {len(given)} bytes, but condition.length={length} allows {length - 1}: {text[:40]}..."
            )
    counts = numpy.array([len(given) for given in encoded], dtype=int)[:, None]
    place = numpy.arange(length)
    ids = numpy.where((place == counts) & (counts > 0), END, PADDING).astype(numpy.int16)
    ids[place < counts] = numpy.frombuffer(b"".join(encoded), dtype=numpy.uint8).astype(numpy.int16) + FIRST_BYTE
    return torch.from_numpy(ids)
