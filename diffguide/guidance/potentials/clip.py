"""CLIP as a potential: the similarity of an image and a text, through `transformers` (pip install 'diffguide[clip]')."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from ...backbones.conditions import Condition
from ...models.protocols import SamplingError
from ...randomness import Noise, create_states
from ...runtime.ranges import check_range, check_whole
from ..base import repeat_noise
from .values import SMOOTHING_DRAW, Potential

__all__ = ["NO_TEXT", "ClipEncoder", "ClipPotential", "PretrainedClip"]

# of CLIP's training images
CLIP_MEAN, CLIP_STD = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
CROP_DRAW = 2 * SMOOTHING_DRAW  # the first draw of crops
TEXTS_AT_ONCE = 64


NO_TEXT = 'guidance=clip needs a text: prompt="...", or prompts=[...] for a text per sample'


class SampleTexts(NamedTuple):
    """The texts of samples.

    Attributes:
        states: those of the noise of their seeds, ascending [N].
        rows: the text of each [N].
        vectors: of the texts [U, E]; 0 = no text.
    """

    states: Tensor
    rows: Tensor
    vectors: Tensor


class ClipEncoder:
    """Unit vectors of images and of texts, by a `transformers` CLIPModel.

    Arguments:
        model: the CLIPModel; its weights are frozen.
        tokenizer: its tokenizer: tokenizer(texts, padding=True, truncation=True, max_length=..., return_tensors="pt").
    """

    def __init__(self, model: Any, tokenizer: Any):
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.side = model.config.vision_config.image_size
        self.max_tokens = model.config.text_config.max_position_embeddings

    def encode_images(self, x: Tensor) -> Tensor:
        """Unit vectors [B, E] of RGB images [B, 3, side, side] in [-1, 1]."""
        self.model.to(x.device)
        mean, std = (torch.tensor(part).to(x)[:, None, None] for part in (CLIP_MEAN, CLIP_STD))
        seen = ((x + 1) / 2 - mean) / std
        weight = self.model.visual_projection.weight
        features = self.model.visual_projection(
            self.model.vision_model(pixel_values=seen.to(weight.dtype)).pooler_output
        )
        return torch.nn.functional.normalize(features, dim=1)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [N, E] of texts."""
        parts = []
        for first in range(0, len(texts), TEXTS_AT_ONCE):
            some = list(texts[first : first + TEXTS_AT_ONCE])
            tokens = self.tokenizer(
                some, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
            )
            tokens = {name: tokens[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
            parts.append(self.model.text_projection(self.model.text_model(**tokens).pooler_output))
        return torch.nn.functional.normalize(torch.cat(parts), dim=1)


class PretrainedClip(ClipEncoder):
    """A CLIP model with its weights.

    Arguments:
        name: a local folder, or a name on the hub, which `transformers` downloads.

    Raises:
        ValueError: `transformers` is not installed, or there is no such model.
    """

    def __init__(self, name: str = "openai/clip-vit-base-patch32"):
        try:
            from transformers import AutoTokenizer, CLIPModel
        except ImportError:
            raise ValueError("CLIP needs transformers: pip install 'diffguide[clip]'") from None
        try:
            model = CLIPModel.from_pretrained(name, use_safetensors=True)  # never a pickle
            super().__init__(model, AutoTokenizer.from_pretrained(name))
        except (OSError, ValueError) as error:
            raise ValueError(f"there is no CLIP model {name}: {str(error).splitlines()[0]}") from error


class ClipPotential(Potential):
    """f(x) = -mean over crops of d(crop(x), prompt), d = 2 arcsin^2(|u - v| / 2) for unit vectors: half the squared angle.

    The loss of CLIP-guided diffusion (Crowson; Nichol et al., "GLIDE", 2022, arXiv 2112.10741, section 2.4, with the
    spherical distance instead of the dot product). d is between 0 and pi^2 / 2 = 4.9, so scales are large: 100 to 1000. A
    crop is a square window, resized to the encoder's input; the crops of a sample depend on its seed alone and are the same
    at every noise level.

    Arguments:
        prompt: text to generate; None = a text for each sample, by `give_texts`.
        encoder: of images and texts; None = `PretrainedClip()`.
        crops: windows per image; 0 = the whole image only.
        smallest: side of the smallest window, as a part of the image's; in (0, 1].

    Raises:
        ValueError: an empty prompt.
        SamplingError: from `start`, no text for a sample; from a call, data that are not images of 1 or 3 channels.
    """

    windows: tuple[Tensor, ...] | None = None
    targets: Tensor | None = None  # unit vectors of the prompt [1, E], or of the texts of a run [B, E]; 0 = no text
    texts: SampleTexts | None = None

    def __init__(self, prompt: str | None, encoder: ClipEncoder | None = None, crops: int = 8, smallest: float = 0.5):
        if prompt is not None and not prompt.strip():
            raise ValueError('prompt must be a text: prompt="a photograph of ..."')
        self.crops = check_whole("crops", crops, 0, 1000)
        self.smallest = check_range("smallest", smallest, "(0, 1]")
        self.encoder = PretrainedClip() if encoder is None else encoder
        self.needs_texts = prompt is None
        if prompt is not None:
            self.targets = self.encoder.encode_texts([prompt])

    def give_texts(self, seeds: Sequence[int], texts: Sequence[str]) -> None:
        index = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        vectors = self.encoder.encode_texts(list(index))
        if "" in index:
            vectors[index[""]] = 0
        states, order = create_states(seeds).sort()
        self.texts = SampleTexts(states, torch.tensor([index[text] for text in texts])[order], vectors)

    def start(self, noise: Noise | None, times: Tensor) -> Self:
        fresh = copy.copy(self)
        if self.needs_texts:
            fresh.targets = self.find_targets(noise)
        if not self.crops:
            return fresh
        if noise is None:
            raise ValueError("CLIP's crops need noise: pass noise to the run, or set guidance.potential.crops=0")
        draws = (noise.normal(times[0], CROP_DRAW + i) for i in range(self.crops))
        fresh.windows = tuple(torch.special.ndtr(draw.flatten(1)[:, :3]) for draw in draws)
        return fresh

    def find_targets(self, noise: Noise | None) -> Tensor:
        """The vectors of the texts of a run, [B, E]."""
        if self.texts is None or noise is None:
            raise SamplingError(NO_TEXT)
        states = noise.states.cpu()
        place = torch.searchsorted(self.texts.states, states).clamp(max=len(self.texts.states) - 1)
        if not torch.equal(self.texts.states[place], states):
            raise SamplingError("CLIP guidance has no text for some seeds of this run: give_texts needs all of them")
        return self.texts.vectors[self.texts.rows[place].to(self.texts.vectors.device)]

    def __call__(self, x: Tensor, y: Condition | None) -> Tensor:
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise SamplingError(f"CLIP needs images [B, 1 or 3, H, W], and this model generates {list(x.shape)}")
        if self.crops and self.windows is None:
            raise ValueError("CLIP's crops are drawn per run: call start(noise, times) first, or take crops=0")
        whole_image = x.new_tensor([[0.5, 0.5, 1.0]]).expand(len(x), 3)
        distances = [self.distance(self.crop(x, window)) for window in self.windows or (whole_image,)]
        return -torch.stack(distances).mean(0)

    def crop(self, x: Tensor, window: Tensor) -> Tensor:
        """Windows [B, 3] = (row, column, side), uniform in [0, 1], of images, resized to the encoder's input."""
        row, column, chance = repeat_noise(window, x, "CLIP").T
        side = self.smallest + (1 - self.smallest) * chance
        zero = torch.zeros_like(side)
        room = 1 - side
        theta = torch.stack([side, zero, (2 * column - 1) * room, zero, side, (2 * row - 1) * room], 1).reshape(
            -1, 2, 3
        )
        size = [len(x), x.shape[1], self.encoder.side, self.encoder.side]
        grid = torch.nn.functional.affine_grid(theta, size, align_corners=False)
        view = torch.nn.functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
        return view.expand(-1, 3, -1, -1)

    def distance(self, view: Tensor) -> Tensor:
        """2 arcsin^2(|u - v| / 2), [B]; 0 for rows without a text."""
        if self.targets is None:
            raise ValueError("CLIP's texts are those of a run: call start(noise, times) first, or give a prompt")
        u = self.encoder.encode_images(view)
        v = repeat_noise(self.targets, u, "CLIP")
        return 2 * ((u - v).norm(dim=1) / 2).clamp(max=1).arcsin() ** 2 * v.any(1)
