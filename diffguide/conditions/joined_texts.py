"""Two frozen text encoders whose states lie side by side, as in SDXL."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..backbones.conditioning import Context
from ..backbones.conditions import Condition, Several, has_condition
from .frozen_text import FrozenText
from .several import SeveralConditions

__all__ = ["JoinedTexts"]


class JoinedTexts(SeveralConditions):
    """The states of text encoders side by side, token by token, and the vector of the last encoder.

    Podell et al., "SDXL", 2023, arXiv 2307.01952, section 2.1.

    Arguments:
        parts: name -> encoder, all of one number of tokens.
        zeros: whether rows without condition have zeros in place of the encodings of the empty text.

    Raises:
        ValueError: encoders of different numbers of tokens.
    """

    def __init__(self, parts: Mapping[str, FrozenText], zeros: bool = False):
        super().__init__(parts, dict.fromkeys(parts, 0.0))
        lengths = {name: part.encoder.length for name, part in parts.items()}
        if len({*lengths.values()}) > 1:
            raise ValueError(f"the encoders of joined texts must have one length, got {lengths}")
        self.zeros, self.projections = zeros, nn.ModuleDict()
        self.token_features = sum(part.token_features for part in parts.values())
        self.vector_features = list(parts.values())[-1].vector_features

    def forward(self, y: Condition | None, x: Tensor) -> Context:
        if y is not None and not isinstance(y, Several):
            raise ValueError(f"y must be Several conditions ({', '.join(self.parts)}), got {type(y).__name__}")
        given = dict.fromkeys(self.parts) if y is None else y.parts
        contexts = [self.empty(given[name], part(given[name], x)) for name, part in self.parts.items()]
        tokens = [context.tokens for context in contexts if context.tokens is not None]
        return Context(contexts[-1].vector, torch.cat(tokens, dim=2), contexts[-1].mask)

    def empty(self, y: Condition | None, context: Context) -> Context:
        """The context of a part, with zeros in rows without condition where `zeros` says so."""
        tokens, vector = context.tokens, context.vector
        assert tokens is not None and vector is not None
        if not self.zeros:
            return context
        keep = torch.zeros(len(tokens), device=tokens.device) if y is None else has_condition(y).to(tokens.dtype)
        return context._replace(vector=vector * keep[:, None], tokens=tokens * keep[:, None, None])
