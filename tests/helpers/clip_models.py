"""A tiny CLIP of random weights: two layers of width 16 on patches of 8 x 8 pixels, and a tokenizer of letters."""

import json
from pathlib import Path

import torch
import transformers

from diffguide.guidance.potentials.clip import ClipEncoder

SIDE = 16


class Tokens:
    """Letters as tokens, between a first and a last one, then padding."""

    def __call__(self, texts, padding, truncation, return_tensors, max_length=32):
        rows = [[0, *(2 + ord(letter) % 40 for letter in text), 49] for text in texts]
        length = max(map(len, rows))
        ids = torch.tensor([row + [1] * (length - len(row)) for row in rows])
        return {
            "input_ids": ids,
            "attention_mask": torch.tensor([[i < len(row) for i in range(length)] for row in rows]).long(),
        }


def tiny_config(vocabulary: int = 50, end: int = 49) -> transformers.CLIPConfig:
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.CLIPConfig(
        text_config={**layers, "vocab_size": vocabulary, "max_position_embeddings": 32, "eos_token_id": end},
        vision_config={**layers, "image_size": SIDE, "patch_size": 8},
        projection_dim=12,
    )


def tiny_clip() -> ClipEncoder:
    """In float64."""
    torch.manual_seed(0)
    return ClipEncoder(transformers.CLIPModel(tiny_config()).double(), Tokens())


def write_clip(folder: Path) -> Path:
    """Writes such a model and a byte-pair tokenizer of letters as `save_pretrained` does; returns its folder."""
    letters = [chr(letter) + end for letter in range(97, 123) for end in ("", "</w>")]
    words = {word: index for index, word in enumerate(["<|startoftext|>", "<|endoftext|>", *letters])}
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    torch.manual_seed(0)
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    for part in (transformers.CLIPModel(tiny_config(len(words), 1)), tokenizer):
        part.save_pretrained(folder / "clip")
    return folder / "clip"
