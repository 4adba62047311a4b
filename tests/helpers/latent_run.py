"""An autoencoder of digits and a model in its latents, which the fixture latent_home trains."""

from pathlib import Path

AUTOENCODER = [
    "objective=autoencoder", "name=autoencoder", "backbone.channels=8", "backbone.multipliers=[1,1]",
    "backbone.head_channels=8", "training.batch_size=32", "training.images=640", "training.warmup_images=0",
]  # fmt: skip
PLACE = ["first_stage=small_kl", "first_stage.path=outputs/train/autoencoder/v001"]
LATENT = [
    *PLACE, "backbone.multipliers=[1]", "backbone.attention=[]", "backbone.blocks=1", "backbone.channels=4",
    "training.batch_size=32", "training.images=128", "training.checkpoint_images=64", "training.log_images=32",
    "training.validation_images=64", "training.warmup_images=0", "sampler.steps=2",
]  # fmt: skip
RUN, STAGE = Path("outputs/train/digits/v001"), Path("outputs/train/autoencoder/v001")
