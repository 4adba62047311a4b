"""CLIP guidance with a tiny network of random weights: the distance, its gradient by finite differences, the crops."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from potential_laws import COSINE, EVERYWHERE, T, White, points

from diffguide.guidance import Nested
from diffguide.guidance.potentials import PotentialGuidance
from diffguide.guidance.potentials.clip import CLIP_MEAN, CLIP_STD, ClipEncoder, ClipPotential, PretrainedClip
from diffguide.guidance.potentials.values import find_text_potentials
from diffguide.models.protocols import SamplingError
from diffguide.randomness import Noise
from diffguide.samplers import DDIM
from diffguide.samplers.grids import UniformT

pytest.importorskip("transformers")
from clip_models import SIDE, Tokens, tiny_clip, write_clip  # noqa: E402  # needs transformers


@pytest.fixture(scope="module")
def encoder() -> ClipEncoder:
    return tiny_clip()


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


def run_texts(encoder, texts, seeds=(1, 2, 3), crops=2, prompt=None, wrap=lambda denoiser: denoiser, y=None):
    """Samples of a white Gaussian under CLIP guidance with a text per seed, or one prompt."""
    potential = ClipPotential(prompt, encoder, crops, 0.7)
    if prompt is None:
        potential.give_texts([1, 2, 3, 4], texts)
    sampler = DDIM(6, UniformT(), eta=0.0)
    guided = wrap(PotentialGuidance(White(0.0, 0.3), potential, 20.0, EVERYWHERE))
    noise, times = Noise(seeds, (3, 8, 8), COSINE, dtype=torch.float64), sampler.times(guided)
    return sampler(guided, noise.normal(times[0], 0), times, y, noise)


@pytest.mark.parametrize("crops", [0, 2])
def test_each_sample_with_its_own_text_is_the_sample_with_that_prompt(encoder, crops):
    """Elementwise, in any batch, also with twice the rows, as a contrast around it has; "" is not guided."""
    texts = ["a red house", "two blue squares", "a red house", "seven"]
    found = run_texts(encoder, texts, crops=crops)
    for row, text in enumerate(texts[:3]):
        expected = run_texts(encoder, (), crops=crops, prompt=text)[row]
        torch.testing.assert_close(found[row], expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(run_texts(encoder, texts, [3, 2], crops), found[[2, 1]], rtol=1e-10, atol=1e-10)
    empty = run_texts(encoder, ["a red house", "", "", "seven"], crops=crops)
    assert torch.equal(empty[1:], run_texts(encoder, [""] * 4, crops=crops)[1:])
    plain = DDIM(6, UniformT(), eta=0.0)
    noise, times = Noise([2, 3], (3, 8, 8), COSINE, dtype=torch.float64), plain.times(White(0.0, 0.3))
    torch.testing.assert_close(empty[1:], plain(White(0.0, 0.3), noise.normal(times[0], 0), times, None, noise))
    potential = ClipPotential(None, encoder, crops, 0.7)
    potential.give_texts([1, 2], texts[:2])
    started = potential.start(Noise([2, 1], (3, 8, 8), COSINE, dtype=torch.float64), times)
    x = points(2, 3, 8, 8)
    twice = started(torch.cat([x, x]), None)
    torch.testing.assert_close(twice, torch.cat([started(x, None)] * 2))


def test_a_text_for_each_sample_is_found_through_every_guidance(encoder):
    potential = ClipPotential(None, encoder, 0)
    inner = PotentialGuidance(White(0.0, 0.3), potential)
    nested = Nested(White(0.0, 0.3), {"clip": lambda denoiser: PotentialGuidance(denoiser, potential)})
    for guided in (inner, nested, PotentialGuidance(inner, ClipPotential("x", encoder, 0))):
        assert find_text_potentials(guided) == [potential]
    assert find_text_potentials(PotentialGuidance(White(0.0, 0.3), ClipPotential("x", encoder, 0))) == []
    with pytest.raises(SamplingError, match=r"guidance=clip needs a text: prompt=.*prompts="):
        potential.start(Noise([1], (3, 8, 8), COSINE), torch.tensor([1.0]))
    with pytest.raises(ValueError, match="CLIP's texts are those of a run"):
        potential(points(1, 3, 8, 8), None)
    potential.give_texts([1, 2], ["a", "b"])
    with pytest.raises(SamplingError, match="no text for some seeds"):
        potential.start(Noise([2, 3], (3, 8, 8), COSINE), torch.tensor([1.0]))


def sample_clip(command, at, *words):
    """The pictures of a command with CLIP guidance, and its manifest."""
    from diffguide.sample import main

    done = command(main, "oracle=empirical", "oracle.width=0.3", "n=4", "sampler.steps=4", "guidance=clip",
                   "guidance.potential.crops=2", f"guidance.potential.encoder.name={at}/clip", *words, at=at)  # fmt: skip
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (at / done.folder / "manifest.jsonl").read_text().splitlines()]
    with np.load(at / done.folder / "samples.npz") as arrays:
        return arrays["arr_0"].astype(int), rows[1:]


def test_a_local_folder_from_the_command_line(tmp_path, command):
    """What `save_pretrained` wrote is found by name, and prompt="..." is what guidance steers to."""
    folder = write_clip(tmp_path)
    runs = (("a red house", 50), ("seven", 50), ("seven", 0))
    grids = [sample_clip(command, tmp_path, f'prompt="{text}"', f"guidance.scale={scale}", "labels=null")[0]
             for text, scale in runs]  # fmt: skip
    assert all(abs(a - b).max() > 3 for a, b in zip(grids, grids[1:]))
    each, rows = sample_clip(command, tmp_path, "prompts=[a red house,seven]", "guidance.scale=50", "batch_size=3")
    assert [row["prompt"] for row in rows] == ["a red house", "seven"] * 2
    for row in range(4):
        assert abs(each[row] - grids[row % 2][row]).max() <= 1
    weights = folder / "model.safetensors"
    torch.save(safetensors.torch.load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ValueError, match="there is no CLIP model"):  # pickles are not looked at
        PretrainedClip(str(folder))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["labels=null"], 'guidance=clip needs a text: prompt="...", or prompts=[...]'),
        (["prompts=[red]", "labels=null"], 'guidance=clip needs a text: prompt="...", or prompts=[...]'),
        (["prompts=[3]"], 'these prompts are none: give prompt="..." beside them'),
    ],
)
def test_runs_without_texts_are_refused_in_one_line(tmp_path, command, words, expected):
    from diffguide.sample import main

    write_clip(tmp_path)
    done = command(main, "oracle=empirical", "oracle.width=0.3", "n=2", "guidance=clip", *words,
                   f"guidance.potential.encoder.name={tmp_path}/clip", at=tmp_path)  # fmt: skip
    assert done.code == 1 and expected in done.err.splitlines()[-1] and "Traceback" not in done.err
