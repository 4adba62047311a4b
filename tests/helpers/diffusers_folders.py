"""Small networks of diffusers with random weights, and folders of them."""

from pathlib import Path
from typing import Any

import diffusers
import torch

UNET = {
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
DIT = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 8,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 3,
    "patch_size": 2,
    "num_embeds_ada_norm": 5,
}

SMALL = {"num_attention_heads": 2, "attention_head_dim": 16}
TOKENS = {  # networks that take the vectors of a text, of length 8
    "UNet2DConditionModel": {
        "block_out_channels": [16, 32],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "cross_attention_dim": 8,
        "attention_head_dim": 4,
    },
    "PixArtTransformer2DModel": SMALL
    | {
        "num_layers": 2,
        "cross_attention_dim": 32,
        "caption_channels": 8,
        "use_additional_conditions": False,
    },
    "SanaTransformer2DModel": SMALL
    | {
        "num_layers": 2,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 16,
        "cross_attention_dim": 32,
        "caption_channels": 8,
    },
    "AuraFlowTransformer2DModel": SMALL
    | {
        "num_mmdit_layers": 1,
        "num_single_dit_layers": 1,
        "joint_attention_dim": 8,
        "caption_projection_dim": 32,
        "pos_embed_max_size": 64,
    },
}


def randomize(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The network with normal weights of a size that makes its output depend on all inputs."""
    rng = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 16
        parameter.data = torch.randn(parameter.shape, generator=rng) * fan**-0.5
    return network.eval().requires_grad_(False)


def unet(seed: int = 0, **changes: Any) -> torch.nn.Module:
    return randomize(diffusers.UNet2DModel(**(UNET | changes)), seed)


def dit(seed: int = 0, **changes: Any) -> torch.nn.Module:
    return randomize(diffusers.DiTTransformer2DModel(**(DIT | changes)), seed)


def save_pipeline(
    folder: Path, network: torch.nn.Module, scheduler: Any, labels: dict | None = None, **save: Any
) -> Path:
    """Writes a pipeline folder as diffusers does."""
    import json

    part = "unet" if "UNet" in type(network).__name__ else "transformer"
    network.save_pretrained(folder / part, **save)
    scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "DDPMPipeline",
        part: ["diffusers", type(network).__name__],
        "scheduler": ["diffusers", type(scheduler).__name__],
    }
    (folder / "model_index.json").write_text(json.dumps(index | ({"id2label": labels} if labels else {})))
    return folder
