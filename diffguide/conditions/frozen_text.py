"""Texts encoded by a frozen encoder that was trained elsewhere: CLIP's or T5's, from a folder or the hub."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backbones.conditioning import Conditioning, ConditionTable, Context, find_column
from ..backbones.conditions import Condition, TokenStates
from ..files.run_folders import WriteError
from ..runtime.ranges import check_range, check_whole
from .captions import CaptionTable, read_text
from .clip_and_t5 import ClipEncoder, T5Encoder
from .encoded_texts import DEFAULT_MEMORY, EncodedTexts, PackedTexts, encode_texts, pad_encodings
from .encoders import Encoding, TextEncoder

__all__ = ["ClipText", "FrozenText", "T5Text"]


class FrozenText(Conditioning):
    """A vector per token and one for the whole text, by an encoder that is not trained and not in the checkpoint.

    The null condition is the encoding of the empty text, which is in the checkpoint: only new texts need the encoder. The texts
    of a data set are encoded once, see `encoded_texts`.

    Arguments:
        encoder: on the disk.
        settings: that change its encodings.
        column: of the data, with the texts of each example; training draws one of them in every epoch.
        cache: folder of the encoded texts.
        memory: bytes of encoded texts up to which they are kept in memory, on the device of the training; above, training
            reads them from the cache.
        sha256: hash of the encoder, which is checked when it is needed; None = the encoder is opened now.
        features, pooled_features: length of the vector of a token and of a text, where `sha256` is given; null = the same.

    Raises:
        ValueError: an encoder that is missing or damaged, or a number out of range.
    """

    reads_text = gives_vectors = True
    empty_states: Tensor
    empty_mask: Tensor
    empty_pooled: Tensor

    def __init__(
        self,
        encoder: TextEncoder,
        settings: Sequence[Any],
        column: str,
        cache: str,
        memory: float,
        sha256: str | None,
        features: int | None,
        pooled_features: int | None = None,
    ):
        super().__init__()
        if (sha256 is None) != (features is None):
            raise ValueError("condition.sha256 and condition.features are both given, or both null")
        self.encoder, self.settings, self.column, self.cache = encoder, list(settings), column, cache
        self.memory = check_range("condition.memory", memory, "[0, inf)")
        self.sha256 = encoder.sha256 if sha256 is None else sha256
        width = encoder.features if features is None else check_whole("condition.features", features, 1)
        whole = encoder.pooled_features if features is None else pooled_features or width
        self.token_features, self.vector_features = width, check_whole("condition.pooled_features", whole, 1)
        self.register_buffer("empty_states", torch.zeros(encoder.length, width))
        self.register_buffer("empty_mask", torch.ones(encoder.length, dtype=torch.bool))
        self.register_buffer("empty_pooled", torch.zeros(self.vector_features))
        if sha256 is None:
            self.encode_empty()

    @property
    def widths(self) -> tuple[int, int]:
        """The length of the vector of a token, and of that of a text."""
        return self.token_features, self.vector_features

    def encode_empty(self) -> None:
        """Takes the null condition from the encoder."""
        empty = pad_encodings(self.encode([""]), self.encoder.length, torch.tensor([True]))
        assert empty.pooled is not None
        self.empty_states.copy_(empty.states[0])
        self.empty_mask.copy_(empty.mask[0])
        self.empty_pooled.copy_(empty.pooled[0])

    def check_encoder(self) -> None:
        """Raises ValueError for an encoder that is missing, or not the one that this conditioning was made with."""
        if self.encoder.sha256 != self.sha256:
            raise ValueError(
                f"condition.path: the text encoder {self.encoder.path} was another one in training: its hash is "
                f"{self.encoder.sha256[:12]} now, and was {self.sha256[:12]}"
            )

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """The encodings of texts, by the encoder."""
        self.check_encoder()
        return self.encoder.encode(texts, self.empty_states.device)

    def settle(self, node: Mapping[str, Any]) -> dict[str, Any]:
        return {**node, "sha256": self.sha256, "features": self.token_features}

    def explain(self) -> Mapping[str, str]:
        encoder = f"by the encoder of condition={self.encoder.kind} with sha256 {self.sha256[:12]}"
        return {
            "states": f"a vector per token of the text {encoder}",
            "mask": "true = a token, false = padding; all false = no condition",
            "pooled": f"a vector for the text {encoder}",
        }

    def forward(self, y: Condition | None, x: Tensor) -> Context:
        rows, null = x.shape[0], (self.empty_states, self.empty_mask, self.empty_pooled)
        states, mask, pooled = (part.expand(rows, *part.shape) for part in null)
        if y is not None:
            if not isinstance(y, TokenStates) or y.states.shape[1:] != self.empty_states.shape or y.pooled is None:
                found = f" {list(y.states.shape)}" if isinstance(y, TokenStates) else ""
                raise ValueError(
                    f"y must be TokenStates [B, {self.encoder.length}, {self.token_features}] with a pooled vector for "
                    f"condition={self.encoder.kind}, got {type(y).__name__}{found}"
                )
            states = torch.where(y.keep[:, None, None], y.states.to(states.dtype), states)
            keep = y.keep[:, None]
            mask = keep & y.mask | ~keep & mask  # onnxruntime has no torch.where of booleans
            pooled = torch.where(y.keep[:, None], y.pooled.to(pooled.dtype), pooled)
        return Context(pooled, states, mask)

    def tabulate(self, columns: Mapping[str, Any], labels: Tensor) -> ConditionTable:
        return CaptionTable(find_column(columns, self.column, f"condition={self.encoder.kind}"), self.encode_once)

    def encode_once(self, texts: Sequence[str]) -> EncodedTexts | PackedTexts:
        """The encodings of the texts of a data set, from the cache as far as they are there."""
        settings, place = [self.sha256, *self.settings], Path(self.cache).expanduser()
        try:
            found = encode_texts(texts, self.encode, place, settings, self.encoder.length, self.widths, self.memory)
        except WriteError as error:
            raise ValueError(f"condition.cache: {error}") from error
        self.encoder.close()
        return found

    def read(self, values: Sequence[Any]) -> TokenStates:
        """Texts; "" = no condition."""
        texts = [read_text(value) for value in values]
        given = list(dict.fromkeys(text for text in texts if text))
        found = dict(zip(given, self.encode(given) if given else []))
        nothing = Encoding(torch.zeros(0, self.token_features), torch.zeros(self.vector_features))
        rows = [found.get(text, nothing) for text in texts]
        keep = torch.tensor([text != "" for text in texts], dtype=torch.bool)
        return pad_encodings(rows, self.encoder.length, keep)


class ClipText(FrozenText):
    """CLIP's text encoder (Radford et al. 2021, arXiv 2103.00020): states of a layer, and the last state at the text's end.

    Arguments:
        path: folder of a CLIP model or of its text half, a pipeline of diffusers, or the name of one on the hub.
        layer: whose states are taken: -1 = the last, normalized; -2 = the one before it, ...
        length: tokens of a text at most, beginning and end among them.
        padding: whether padding up to `length` is attended to, as in Stable Diffusion.
        projected: whether the vector of a text is projected, as CLIP compares it with pictures.
        column, cache, memory, sha256, features, pooled_features: see `FrozenText`.
    """

    def __init__(
        self,
        path: str,
        layer: int = -1,
        length: int = 77,
        padding: bool = False,
        projected: bool = False,
        column: str = "captions",
        cache: str = "outputs/texts",
        memory: float = DEFAULT_MEMORY,
        sha256: str | None = None,
        features: int | None = None,
        pooled_features: int | None = None,
    ):
        encoder = ClipEncoder(path, check_whole("condition.length", length, 2), layer, padding, projected)
        settings = [layer, length, padding, projected]
        super().__init__(encoder, settings, column, cache, memory, sha256, features, pooled_features)
        self.padding = padding

    def settle(self, node: Mapping[str, Any]) -> dict[str, Any]:
        return {**super().settle(node), "pooled_features": self.vector_features}

    def forward(self, y: Condition | None, x: Tensor) -> Context:
        context = super().forward(y, x)
        return context._replace(mask=None) if self.padding else context


class T5Text(FrozenText):
    """The encoder of T5 (Raffel et al. 2020, arXiv 1910.10683): its last states, and their mean.

    Arguments:
        path: folder of a T5 model or of its encoder, or the name of one on the hub.
        length: tokens of a text at most, the end among them.
        column, cache, memory, sha256, features: see `FrozenText`.
    """

    def __init__(
        self,
        path: str,
        length: int = 128,
        column: str = "captions",
        cache: str = "outputs/texts",
        memory: float = DEFAULT_MEMORY,
        sha256: str | None = None,
        features: int | None = None,
    ):
        encoder = T5Encoder(path, check_whole("condition.length", length, 1))
        super().__init__(encoder, [length], column, cache, memory, sha256, features)
