"""The text encoders of the library transformers, imported when a text is encoded: CLIP's and T5's."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..files.safetensors import CheckpointError
from .encoders import Encoding, TextEncoder

__all__ = ["ClipEncoder", "T5Encoder"]


class ClipEncoder(TextEncoder):
    """CLIP's text encoder (Radford et al., "Learning Transferable Visual Models", 2021, arXiv 2103.00020).

    Arguments:
        layer: whose states are taken: -1 = the last, after the last normalization; -2 = the one before, without it, ...
        padding: whether padding up to `length` is part of a text, as in Stable Diffusion.
        projected: whether the vector of a text is projected, as CLIP compares it with pictures.
        others: see `TextEncoder`.
    """

    kind = "clip_text"
    model_types = ("clip", "clip_text_model")
    numbers = (
        "vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads",
        "max_position_embeddings", "hidden_act", "layer_norm_eps", "bos_token_id", "eos_token_id", "pad_token_id",
    )  # fmt: skip

    def __init__(self, path: str, length: int, layer: int = -1, padding: bool = False, projected: bool = False):
        super().__init__(path, length)
        self.layer, self.padding, self.projected = layer, padding, projected

    @property
    def features(self) -> int:
        return self.config.get("hidden_size", 512)

    @property
    def pooled_features(self) -> int:
        return self.config.get("projection_dim", 512) if self.projected else self.features

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import CLIPTokenizer

        try:
            return CLIPTokenizer.from_pretrained(str(self.tokenizer_place), local_files_only=True)
        except Exception as error:  # the library raises anything for files that do not fit
            raise CheckpointError(f"the tokenizer in {self.tokenizer_place} cannot be read: {error}") from error

    def create(self) -> Any:
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        positions, layers = (
            self.config.get(key, default)
            for key, default in (("max_position_embeddings", 77), ("num_hidden_layers", 12))
        )
        if self.length > positions:
            raise CheckpointError(f"condition.length must be at most {positions} with {self.path}, got {self.length}")
        if not -layers <= self.layer <= -1:
            raise CheckpointError(f"condition.layer must be from -{layers} to -1 with {self.path}, got {self.layer}")
        kind = CLIPTextModelWithProjection if self.projected else CLIPTextModel
        return kind(CLIPTextConfig(**self.config))

    def encode_batch(self, texts: Sequence[str], device: torch.device) -> list[Encoding]:
        filled = "max_length" if self.padding else "longest"
        tokens = self.tokenizer(list(texts), padding=filled, max_length=self.length, return_tensors="pt")
        counts = tokens["attention_mask"].sum(1).tolist()
        self.check_lengths(texts, counts)
        mask = None if self.padding else tokens["attention_mask"].to(device)
        found = self.network(
            input_ids=tokens["input_ids"].to(device), attention_mask=mask, output_hidden_states=self.layer != -1
        )
        states = found.last_hidden_state if self.layer == -1 else found.hidden_states[self.layer]
        lengths = [self.length] * len(texts) if self.padding else counts
        return split_rows(states, lengths, found.text_embeds if self.projected else found.pooler_output)


class T5Encoder(TextEncoder):
    """The encoder of T5 (Raffel et al., "Exploring the Limits of Transfer Learning", 2020, arXiv 1910.10683).

    The vector of a text is the mean of its tokens', as in Saharia et al., "Imagen", 2022, arXiv 2205.11487, section 2.4.
    """

    kind = "t5"
    model_types = ("t5",)
    numbers = (
        "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "relative_attention_num_buckets",
        "relative_attention_max_distance", "layer_norm_epsilon", "feed_forward_proj",
    )  # fmt: skip

    @property
    def features(self) -> int:
        return self.config.get("d_model", 512)

    @cached_property
    def tokenizer(self) -> Any:
        file = self.tokenizer_place / "tokenizer.json"
        if not file.is_file():
            raise CheckpointError(f"{self.tokenizer_place} has no tokenizer.json, from which T5's tokens are made")
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises Exception itself
            raise CheckpointError(f"the tokenizer in {self.tokenizer_place} cannot be read: {error}") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def create(self) -> Any:
        from transformers import T5Config, T5EncoderModel

        return T5EncoderModel(T5Config(**self.config))

    def encode_batch(self, texts: Sequence[str], device: torch.device) -> list[Encoding]:
        rows = [row.ids for row in self.tokenizer.encode_batch(list(texts))]
        counts = [len(row) for row in rows]
        self.check_lengths(texts, counts)
        ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)
        mask = torch.arange(ids.shape[1], device=device) < torch.tensor(counts, device=device)[:, None]
        states = self.network(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        weight = mask[:, :, None].to(states.dtype)
        return split_rows(states, counts, (states * weight).sum(1) / weight.sum(1))


def split_rows(states: Tensor, counts: Sequence[int], pooled: Tensor) -> list[Encoding]:
    """The encodings of the rows of a batch, on the CPU."""
    states, pooled = states.float().cpu(), pooled.float().cpu()
    return [Encoding(row[:count].clone(), whole.clone()) for row, count, whole in zip(states, counts, pooled)]
