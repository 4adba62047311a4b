"""Small pipelines of Stable Diffusion with random weights."""

from pathlib import Path
from typing import Any

import diffusers
from diffusers_folders import randomize
from text_encoders import clip_network, write_clip_tokenizer

LENGTH = 64  # tokens
UNET = {
    "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (16, 32), "layers_per_block": 1,
    "norm_num_groups": 8, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 8, "attention_head_dim": 4,
}  # fmt: skip
VAE = {
    "block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4, "sample_size": 16,
    "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2, "scaling_factor": 0.18215,
}  # fmt: skip
SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
FIRST = {"steps_offset": 1, "set_alpha_to_one": False}  # of Stable Diffusion 1 and 2, with timesteps "leading"


def stable_diffusion(folder: Path, **scheduler: Any) -> diffusers.StableDiffusionPipeline:
    """Writes a pipeline, and returns it."""
    from transformers import CLIPTokenizer

    tokens = write_clip_tokenizer(folder.with_name("words"), LENGTH)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=randomize(diffusers.AutoencoderKL(**VAE), 1),
        text_encoder=clip_network(tokens, LENGTH),
        tokenizer=CLIPTokenizer.from_pretrained(folder.with_name("words")),
        unet=randomize(diffusers.UNet2DConditionModel(**UNET), 2),
        scheduler=diffusers.DDIMScheduler(**SCHEDULER, **scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stable_diffusion_xl(folder: Path, zeros: bool = True) -> diffusers.StableDiffusionXLPipeline:
    """The same with two text encoders of other widths, a tokenizer with other padding, and the size of the picture."""
    from transformers import CLIPTokenizer

    tokens = write_clip_tokenizer(folder.with_name("words"), LENGTH)
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    changes = {"cross_attention_dim": 20, "projection_class_embeddings_input_dim": 10 + 6 * 4}
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=randomize(diffusers.AutoencoderKL(**VAE), 1),
        text_encoder=clip_network(tokens, LENGTH),
        text_encoder_2=clip_network(tokens, LENGTH, 5, 12, 10),
        tokenizer=CLIPTokenizer.from_pretrained(folder.with_name("words")),
        tokenizer_2=CLIPTokenizer.from_pretrained(folder.with_name("words"), pad_token="!"),
        unet=randomize(diffusers.UNet2DConditionModel(**UNET | added | changes), 2),
        scheduler=diffusers.DDIMScheduler(**SCHEDULER, **FIRST),
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
