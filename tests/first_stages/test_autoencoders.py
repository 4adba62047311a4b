"""First stages against closed forms in NumPy and against diffusers."""

import diffusers
import numpy
import pytest
import torch
from diffusers_folders import randomize
from scipy.ndimage import correlate1d

from diffguide.backbones import UNet
from diffguide.first_stages import Autoencoder, DiffusersAutoencoder, FirstStage, Posterior, SmallKL
from diffguide.objectives import AutoencoderObjective
from diffguide.objectives.autoencoder import laplacian_pyramid
from diffguide.randomness import normal
from diffguide.schedules import Cosine, NoSchedule

KL = {"block_out_channels": [8, 16], "norm_num_groups": 4, "latent_channels": 3, "layers_per_block": 1,
      "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}  # fmt: skip
TINY = {"encoder_block_out_channels": [8, 8, 8], "decoder_block_out_channels": [8, 8, 8], "num_encoder_blocks": [1, 1, 1],
        "num_decoder_blocks": [1, 1, 1]}  # fmt: skip


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small(**changes) -> SmallKL:
    torch.manual_seed(0)
    facts = dict(in_channels=3, size=16, channels=8, multipliers=(1, 1, 1), latent_channels=2)
    return SmallKL(**(facts | changes))


def test_the_divergence_is_that_of_two_gaussians():
    """KL(N(m, S) || N(0, I)) = (tr S + m m - k - log det S) / 2, with the whole matrix."""
    mean, log_variance = draw(3, 2, 2, 2), draw(3, 2, 2, 2, seed=1)
    found = Posterior(mean, log_variance).kl()
    for row in range(3):
        m, covariance = mean[row].numpy().ravel(), numpy.diag(log_variance[row].exp().numpy().ravel())
        wanted = (numpy.trace(covariance) + m @ m - len(m) - numpy.linalg.slogdet(covariance)[1]) / 2
        assert float(found[row]) == pytest.approx(wanted, rel=1e-12)
    with pytest.raises(ValueError, match="deterministic"):
        Posterior(mean, None).kl()


def test_samples_have_the_mean_and_variance_of_the_posterior():
    """400,000 draws of one element: both moments to four standard errors."""
    mean, log_variance = torch.tensor(0.7).double(), torch.tensor(-1.3).double()
    z = Posterior(mean.expand(400_000), log_variance.expand(400_000)).sample(draw(400_000))
    variance = numpy.exp(-1.3)
    assert abs(float(z.mean()) - 0.7) < 4 * numpy.sqrt(variance / 400_000)
    assert abs(float(z.var()) - variance) < 4 * variance * numpy.sqrt(2 / 400_000)


class Halves(FirstStage):
    """A first stage whose latents are every second pixel, twice."""

    channels, latent_channels, downsampling = 2, 2, 2
    scaling_factor, shift_factor = [0.5, 4.0], [0.25, -1.0]

    def posterior(self, x):
        return Posterior(2 * x[..., ::2, ::2], torch.zeros_like(x[..., ::2, ::2]))

    def reconstruct(self, latent):
        return (latent / 2).repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_latents_are_shifted_and_scaled_per_channel():
    x, stage = draw(1, 2, 4, 4), Halves()
    z, noise = stage.encode(x), draw(1, 2, 2, 2, seed=2)
    numpy.testing.assert_allclose(z[0, 0], (2 * x[0, 0, ::2, ::2] - 0.25) * 0.5, rtol=1e-14)
    numpy.testing.assert_allclose(z[0, 1], (2 * x[0, 1, ::2, ::2] + 1.0) * 4.0, rtol=1e-14)
    numpy.testing.assert_allclose(stage.encode(x, noise)[0, 1], z[0, 1] + 4 * noise[0, 1], atol=1e-13)
    numpy.testing.assert_allclose(stage.decode(z)[..., ::2, ::2], x[..., ::2, ::2], rtol=1e-14)
    assert stage.latent_shape((2, 6, 4)) == (2, 3, 2)


@pytest.mark.parametrize("shape, word", [((2,), "pictures"), ((3, 4, 4), "channels"), ((2, 5, 4), "sides")])
def test_shapes_that_do_not_fit_are_refused(shape, word):
    with pytest.raises(ValueError, match=word):
        Halves().latent_shape(shape)


@pytest.mark.parametrize("changes", [{}, {"scaling_factor": 0.36, "shift_factor": 0.11},
                                     {"latents_mean": [0.1, -0.4, 2.0], "latents_std": [1.5, 2.0, 0.5]}])  # fmt: skip
def test_autoencoder_kl_is_that_of_diffusers(changes):
    """Elementwise, with the scaling of diffusers' pipelines: StableDiffusion's, Flux's, and SDXL's with statistics."""
    peer = randomize(diffusers.AutoencoderKL(**(KL | changes)))
    ours = DiffusersAutoencoder("AutoencoderKL", KL | changes)
    ours.network.load_state_dict(peer.state_dict())
    x, noise, config = draw(2, 3, 16, 16).float(), draw(2, 3, 8, 8).float(), peer.config
    with torch.no_grad():
        law = peer.encode(x).latent_dist
        z, drawn, decoded = ours.encode(x), ours.encode(x, noise), ours.decode(noise)
        if config.latents_mean:
            mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (config.latents_mean, config.latents_std))
        else:
            mean, std = config.shift_factor or 0.0, 1.0
        unscaled = noise * std / config.scaling_factor + mean
        torch.testing.assert_close(z, (law.mean - mean) * config.scaling_factor / std, atol=1e-5, rtol=0)
        torch.testing.assert_close(drawn - z, law.std * noise * config.scaling_factor / std, atol=1e-5, rtol=0)
        torch.testing.assert_close(decoded, peer.decode(unscaled).sample, atol=1e-5, rtol=0)
    assert z.std() > 0.01 and decoded.std() > 0.01
    assert ours.latent_shape((3, 16, 8)) == (3, 8, 4)


def test_autoencoder_tiny_is_that_of_diffusers():
    peer = randomize(diffusers.AutoencoderTiny(**TINY))
    ours = DiffusersAutoencoder("AutoencoderTiny", TINY)
    ours.network.load_state_dict(peer.state_dict())
    x, z = draw(2, 3, 16, 16).float(), draw(2, 4, 4, 4).float()
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(x), peer.encode(x).latents, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.decode(z), peer.decode(z).sample, atol=1e-5, rtol=0)
        assert torch.equal(ours.encode(x, z), ours.encode(x))  # deterministic
    assert ours.latent_shape((3, 16, 16)) == (4, 4, 4)


def test_other_classes_and_two_shifts_are_refused():
    with pytest.raises(ValueError, match="AutoencoderKL"):
        DiffusersAutoencoder("VQModel", {})
    with pytest.raises(ValueError, match="shift_factor"):
        shifts = {"shift_factor": 0.1, "latents_mean": [0.0] * 3, "latents_std": [1.0] * 3}
        DiffusersAutoencoder("AutoencoderKL", KL | shifts)


@pytest.mark.parametrize("multipliers, side, latent", [((1,), 8, 8), ((1, 2), 16, 8), ((1, 1, 1), 16, 4)])
def test_small_kl_has_the_sides_that_it_states(multipliers, side, latent):
    stage = Autoencoder(
        small(multipliers=multipliers, size=side, attention=[latent], head_channels=8, blocks=2).double()
    )
    x = draw(2, 3, side, side)
    z = stage.encode(x)
    assert z.shape == (2, *stage.latent_shape((3, side, side))) == (2, 2, latent, latent)
    assert stage.decode(z).shape == stage.backbone(x).shape == x.shape
    assert stage.decode(stage.encode(draw(1, 3, 4 * side, side))).shape == (1, 3, 4 * side, side)
    larger = stage.decode(2 * z) - stage.decode(z)
    assert larger.abs().amin(1).max() > 1e-3  # the decoder depends on its input


def test_a_gradient_reaches_every_weight_but_those_of_no_condition():
    network = small().double()
    with torch.no_grad():
        for part in network.parameters():  # blocks start as their skip connections
            part += 0.1 * torch.randn_like(part)
    AutoencoderObjective(network)(draw(2, 3, 16, 16), None, torch.Generator()).per_example.mean().backward()
    still = {name for name, part in network.named_parameters() if part.grad is None or not part.grad.any()}
    assert {name.rpartition(".modulation.")[2] for name in still} == {"weight"}


def blurred(x: numpy.ndarray) -> numpy.ndarray:
    kernel = numpy.array([1, 4, 6, 4, 1]) / 16
    return correlate1d(correlate1d(x, kernel, axis=-1, mode="mirror"), kernel, axis=-2, mode="mirror")


def test_the_pyramid_is_burts_and_adelsons():
    """Against SciPy's filters; its bands rebuild the picture, and a constant has none."""
    x = draw(2, 3, 16, 24)
    bands = laplacian_pyramid(x)
    level = x.numpy()
    for band in bands[:-1]:
        coarse = blurred(level)[..., ::2, ::2]
        spread = numpy.zeros_like(level)
        spread[..., ::2, ::2] = 4 * coarse
        numpy.testing.assert_allclose(band, level - blurred(spread), atol=1e-13)
        level = coarse
    numpy.testing.assert_allclose(bands[-1], level, atol=1e-13)
    assert [tuple(band.shape[2:]) for band in bands] == [(16, 24), (8, 12), (4, 6)]
    *fine, rest = laplacian_pyramid(torch.full((1, 1, 16, 16), 0.3).double())
    assert all(band.abs().max() < 1e-14 for band in fine) and torch.allclose(rest, torch.tensor(0.3).double())


def test_the_loss_is_its_formula():
    """With the noise that the objective draws; each weight alone and all together."""
    x, network = draw(3, 3, 16, 16), small().double()
    posterior = network.moments(x)
    noise = normal(posterior.mean.shape, torch.Generator().manual_seed(5), torch.float64)
    error = (network.reconstruct(posterior.sample(noise)) - x).detach()
    pyramid = sum(band.abs().flatten(1).mean(1) for band in laplacian_pyramid(error)).numpy()
    parts = {"l1_weight": abs(error.numpy()).mean((1, 2, 3)), "l2_weight": (error.numpy() ** 2).mean((1, 2, 3)),
             "pyramid_weight": pyramid, "kl_weight": posterior.kl().detach().numpy() / x[0].numel()}  # fmt: skip
    for weights in [(2, 0, 0, 0), (0, 3, 0, 0), (0, 0, 0.5, 0), (1, 1, 1, 0.1)]:
        objective = AutoencoderObjective(network, NoSchedule(), *map(float, weights))
        loss = objective(x, None, torch.Generator().manual_seed(5))
        wanted = sum(weight * part for weight, part in zip(weights, parts.values()))
        numpy.testing.assert_allclose(loss.per_example.detach(), wanted, rtol=1e-10)
        assert ("pyramid" in loss.terms) == (weights[2] > 0)
    mse = parts["l2_weight"].mean()
    assert objective.figures(loss)["psnr"] == pytest.approx(-10 * numpy.log10(mse / 4), abs=1e-6)


def test_what_is_no_autoencoder_is_refused():
    with pytest.raises(ValueError, match="small_kl"):
        AutoencoderObjective(UNet(in_channels=1, size=8))
    with pytest.raises(ValueError, match="schedule=none"):
        AutoencoderObjective(small(), Cosine())
    with pytest.raises(ValueError, match="l1_weight"):
        AutoencoderObjective(small(), None, 0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="vectors"):
        small(size=None)
    with pytest.raises(ValueError, match="channels"):
        AutoencoderObjective(small()).check(torch.zeros(2, 1, 16, 16))
