"""Small CLIP and T5 text encoders with random weights and tokenizers, written into folders."""

import json
from pathlib import Path

import torch

WORDS = ["a", "red", "blue", "circle", "square", "two", "photograph", "of", "an", "astronaut", "green"]


def write_clip_tokenizer(folder: Path, length: int = 12) -> int:
    """Writes vocab.json and merges.txt: letters, and one merge; returns the number of tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [
        "!",
        *letters,
        *(f"{letter}</w>" for letter in letters),
        "re",
        "red</w>",
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "pad_token": "<|endoftext|>",
                "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(tokens)


def clip_network(tokens: int, length: int = 12, seed: int = 0, width: int = 8, projection: int | None = None):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=tokens, hidden_size=width, intermediate_size=16, projection_dim=projection or width, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=length, bos_token_id=tokens - 2, eos_token_id=tokens - 1,
        pad_token_id=0,
    )  # fmt: skip
    network = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape)
    return network.eval()


def write_clip(folder: Path, length: int = 12, seed: int = 0) -> Path:
    """A CLIP text encoder with its tokenizer in one folder."""
    tokens = write_clip_tokenizer(folder, length)
    clip_network(tokens, length, seed).save_pretrained(folder)
    return folder


def write_t5(folder: Path, seed: int = 0) -> Path:
    """A T5 encoder with a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import T5Config, T5EncoderModel

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(seed)
    config = T5Config(vocab_size=len(vocabulary), d_model=6, d_kv=3, d_ff=12, num_layers=2, num_heads=2)
    network = T5EncoderModel(config)
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape)
    network.save_pretrained(folder)
    return folder
