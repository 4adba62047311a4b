"""CLIP guidance with a tiny network of random weights: the distance, its gradient by finite differences, the crops."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from potential_laws import COSINE, EVERYWHERE, T, White, points

from diffguide.guidance.potentials import PotentialGuidance
from diffguide.guidance.potentials.clip import CLIP_MEAN, CLIP_STD, ClipEncoder, ClipPotential, PretrainedClip
from diffguide.models.protocols import SamplingError
from diffguide.randomness import Noise
from diffguide.samplers import DDIM
from diffguide.samplers.grids import UniformT

transformers = pytest.importorskip("transformers")
SIDE = 16


class Tokens:
    """Letters as tokens, between a first and a last one."""

    def __call__(self, texts, padding, truncation, return_tensors):
        ids = torch.tensor([[0, *(2 + ord(letter) % 40 for letter in text), 49] for text in texts])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture(scope="module")
def encoder() -> ClipEncoder:
    """Two layers of width 16 on patches of 8 x 8 pixels, float64."""
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**layers, "vocab_size": 50, "max_position_embeddings": 32, "eos_token_id": 49},
        vision_config={**layers, "image_size": SIDE, "patch_size": 8},
        projection_dim=12,
    )
    torch.manual_seed(0)
    return ClipEncoder(transformers.CLIPModel(config).double(), Tokens())


def test_the_distance_is_half_the_squared_angle(encoder):
    """Half the squared angle between the unit vectors that CLIPModel itself gives, negative."""
    x = points(3, 3, SIDE, SIDE).clamp(-1, 1)
    pixels = ((x + 1) / 2 - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]
    tokens = Tokens()(["a red house"], True, True, "pt")
    with torch.no_grad():
        out = encoder.model(pixel_values=pixels, **tokens)
    angle = np.arccos((out.image_embeds @ out.text_embeds.mT)[:, 0].numpy())
    found = ClipPotential("a red house", encoder, 0, 0.5)(x, None)
    np.testing.assert_allclose(found, -(angle**2) / 2, rtol=1e-6)
    assert not torch.allclose(found, ClipPotential("a blue one", encoder, 0, 0.5)(x, None))


@pytest.mark.parametrize("channels, crops", [(3, 0), (3, 2), (1, 2)])
def test_the_gradient_is_that_of_finite_differences(encoder, channels, crops):
    """Against finite differences, through crops and resizing, of grey and of colour images smaller than the encoder's."""
    potential = ClipPotential("x", encoder, crops, 0.5)
    potential = potential.start(
        Noise(range(2), (channels, 4, 4), COSINE, dtype=torch.float64), torch.tensor([1.0, 0.0])
    )
    x = points(2, channels, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: potential(x, None), x, atol=1e-7, rtol=1e-4)
    assert not any(part.requires_grad for part in encoder.model.parameters())


def test_crops_are_squares_inside_the_image(encoder):
    """Windows are squares inside the image, of at least the smallest side, a function of the seed; 1 is the whole image."""
    ramp = torch.linspace(-1, 1, 64, dtype=torch.float64).expand(1, 1, 64, 64)  # a column's value is its place
    for smallest in (0.3, 1.0):
        noise = Noise([5], (1, 64, 64), COSINE, dtype=torch.float64)
        potential = ClipPotential("x", encoder, 6, smallest).start(noise, torch.tensor([1.0, 0.0]))
        views = [potential.crop(ramp, window)[0, 0] for window in potential.windows]
        sides = [float(view[0, -1] - view[0, 0]) / 2 * SIDE / (SIDE - 1) for view in views]
        assert all(view.shape == (SIDE, SIDE) and -1 <= view.min() and view.max() <= 1 for view in views)
        assert all(smallest - 0.05 <= side <= 1.05 for side in sides)
        assert smallest == 1.0 or max(sides) - min(sides) > 0.05
    again = ClipPotential("x", encoder, 6, 1.0).start(Noise([4, 5], (1, 64, 64), COSINE), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(again.windows[3][1:], potential.windows[3].float(), atol=1e-6, rtol=0)


def test_guided_images_come_nearer_to_the_text(encoder):
    """The potential rises with the scale; the same seeds give the same images, alone and in a batch."""
    law, sampler, whole = White(0.0, 0.3), DDIM(8, UniformT(), eta=0.0), ClipPotential("x", encoder, 0, 0.5)

    def run(scale, seeds=(1, 2, 3)):
        guided = PotentialGuidance(law, ClipPotential("x", encoder, 2, 0.7), scale, EVERYWHERE)
        noise, times = Noise(seeds, (3, 8, 8), COSINE, dtype=torch.float64), sampler.times(guided)
        return sampler(guided, noise.normal(times[0], 0), times, None, noise)

    found = [run(scale) for scale in (0.0, 3.0, 10.0)]
    values = [float(whole(x, None).mean()) for x in found]
    assert values[0] < values[1] < values[2]
    torch.testing.assert_close(run(3.0, [2]), found[1][1:2], rtol=1e-6, atol=1e-6)


def test_invalid_arguments_raise(encoder, tmp_path):
    with pytest.raises(ValueError, match="prompt must be"):
        ClipPotential(" ", encoder, 2, 0.5)
    with pytest.raises(ValueError, match="smallest must be"):
        ClipPotential("x", encoder, 2, 0.0)
    with pytest.raises(ValueError, match="crops must be"):
        ClipPotential("x", encoder, -1, 0.5)
    with pytest.raises(ValueError, match=r"call start\(noise, times\) first"):
        ClipPotential("x", encoder, 2, 0.5)(points(2, 3, 8, 8), None)
    with pytest.raises(SamplingError, match=r"CLIP needs images .* \[2, 5\]"):
        PotentialGuidance(White(0.0, 1.0), ClipPotential("x", encoder, 0, 0.5), 1.0, EVERYWHERE)(points(2, 5), T)
    with pytest.raises(ValueError, match="there is no CLIP model"):
        PretrainedClip(str(tmp_path / "nothing"))


def test_a_local_folder_from_the_command_line(encoder, tmp_path, command):
    """What `save_pretrained` wrote is found by name, and prompt="..." is what guidance steers to."""
    from diffguide.sample import main

    letters = [chr(letter) + end for letter in range(97, 123) for end in ("", "</w>")]
    words = {word: index for index, word in enumerate(["<|startoftext|>", "<|endoftext|>", *letters])}
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    config = transformers.CLIPConfig.from_dict(encoder.model.config.to_dict())
    config.text_config.vocab_size, config.text_config.eos_token_id = len(words), 1
    for part in (transformers.CLIPModel(config), tokenizer):
        part.save_pretrained(tmp_path / "clip")
    grids = []
    for prompt, scale in (("a red house", 50), ("seven", 50), ("seven", 0)):
        done = command(main, "oracle=empirical", "oracle.width=0.3", "n=4", "sampler.steps=4", "guidance=clip",
                       f'prompt="{prompt}"', f"guidance.scale={scale}", "guidance.potential.crops=2",
                       f"guidance.potential.encoder.name={tmp_path}/clip", at=tmp_path)  # fmt: skip
        assert done.code == 0, done.err
        with np.load(tmp_path / done.folder / "samples.npz") as arrays:
            grids.append(arrays["arr_0"].astype(int))
    assert all(abs(a - b).max() > 3 for a, b in zip(grids, grids[1:]))
    weights = tmp_path / "clip/model.safetensors"
    torch.save(safetensors.torch.load_file(weights), tmp_path / "clip/pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ValueError, match="there is no CLIP model"):  # pickles are not looked at
        PretrainedClip(str(tmp_path / "clip"))
