"""Guidance by classifiers of clean images, through the estimate of x_0: the formulas, and networks from files."""

import math

import pytest
import torch
from closed_forms import gaussian
from networks import lively, unet
from omegaconf import OmegaConf
from torch import nn

from diffguide.checkpoints.allowlist import validate_config
from diffguide.config.build import ConfigError, build
from diffguide.files.safetensors import CheckpointError
from diffguide.guidance.clean_classifier import (
    CleanClassifierGuidance,
    ExportedProgram,
    ImageNetwork,
    TorchScript,
    Torchvision,
)
from diffguide.models.parameterizations import V
from diffguide.models.preconditioned import Preconditioned
from diffguide.models.protocols import SamplingError
from diffguide.oracles import GaussianMixture
from diffguide.schedules import EDM, Cosine

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")  # files of older programs stay readable
EVERYWHERE = (0.0, math.inf)
t = torch.tensor(0.4, dtype=torch.float64)
rng = torch.Generator().manual_seed(0)
x = torch.randn(4, 1, 8, 8, generator=rng, dtype=torch.float64)
y = torch.tensor([0, -1, 2, 1])


class Linear(ImageNetwork):
    """Logits linear in the pixels, of images of any size."""

    def __init__(self, channels=1, side=8, classes=3):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(channels * side**2, classes).double()

    def forward(self, x):
        return self.linear(x.flatten(1))


def steering(
    denoiser, scale=2.0, network=None, through=True, interval=EVERYWHERE, **changed
) -> CleanClassifierGuidance:
    options = {"num_classes": 3, "channels": 1, "size": None, "mean": [0.5], "std": [0.5]} | changed
    return CleanClassifierGuidance(
        denoiser, network or Linear(), **options, scale=scale, through_denoiser=through, interval=interval
    )


COSINE = Cosine(12.0, -10.0)


def generator(schedule=COSINE, **changed) -> Preconditioned:
    return Preconditioned(lively(unet(**changed)).double(), schedule, V(), has_null=True)


@pytest.mark.parametrize("schedule", [Cosine(12.0, -10.0), EDM(12.4, -8.7)], ids=["vp", "ve"])
@pytest.mark.parametrize("through", [True, False])
def test_the_step_is_the_gradient(schedule, through):
    """Against differences of log p(y | x0_hat), through the network or of x0_hat alone; rows without a class stay."""
    model = generator(schedule)
    guided, plain = steering(model, through=through), steering(model, scale=0.0)
    alpha, sigma = (float(part) for part in schedule.alpha_sigma(t))
    direction, h, rows = torch.randn(x.shape, generator=rng, dtype=torch.float64), 1e-5, torch.arange(4)

    def log_p(step):
        x_0 = model(x + step, t, y).x_0 if through else model(x, t, y).x_0 + step
        return guided.log_prob(x_0)[rows, y]

    expected = torch.where(y >= 0, (log_p(h * direction) - log_p(-h * direction)) / (2 * h), 0)
    factor = sigma**2 / alpha if through else sigma**2 / (alpha**2 + sigma**2)
    found, before = guided(x, t, y), plain(x, t, y)
    along = ((found.x_0 - before.x_0) * direction).flatten(1).sum(1)
    torch.testing.assert_close(along, 2.0 * factor * expected, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(alpha * found.x_0 + sigma * found.eps, x, rtol=1e-9, atol=1e-9)
    assert torch.equal(found.x_0[1], before.x_0[1]) and float(expected.detach().abs().max()) > 1e-3
    assert not found.x_0.requires_grad


@pytest.mark.parametrize("schedule", [Cosine(12.0, -10.0), EDM(12.4, -8.7)], ids=["vp", "ve"])
def test_both_ways_agree_on_data_of_unit_variance(schedule):
    """Cov[x_0 | x_t] is then sigma^2 / (alpha^2 + sigma^2), which is what takes the network's place."""

    class Images(GaussianMixture):
        """The standard normal law of 64 pixels."""

        def __call__(self, x_t, t, y=None):
            flat = super().__call__(x_t.flatten(1), t)
            return type(flat)(*(field.reshape(x_t.shape) for field in flat))

    law = gaussian([0.0] * 64, torch.eye(64).tolist())
    model = Images([1.0], law.means.tolist(), 1.0, [0], schedule)
    model.num_classes = 0
    found = [steering(model, through=through)(x, t, y).x_0 for through in (True, False)]
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def test_preparation_of_the_images():
    """[-1, 1] to [0, 1], grey to three channels or colours to grey, resized, mean and standard deviation."""
    seen = []

    class Seen(ImageNetwork):
        def forward(self, x):
            seen.append(x)
            return x.new_zeros(len(x), 3)

    model = generator()
    image = torch.linspace(-1, 1, 64, dtype=torch.float64).reshape(1, 1, 8, 8)
    found = steering(model, network=Seen(), channels=3, size=16, mean=[0.5, 0.4, 0.3], std=[0.1, 0.2, 0.3])
    assert torch.equal(found.log_prob(image).exp(), torch.full((1, 3), 1 / 3, dtype=torch.float64))
    assert seen[0].shape == (1, 3, 16, 16)
    means = [(0.5 - 0.5) / 0.1, (0.5 - 0.4) / 0.2, (0.5 - 0.3) / 0.3]
    assert seen[0].mean((0, 2, 3)).tolist() == pytest.approx(means, abs=1e-6)
    steering(model, network=Seen(), channels=1).log_prob(image.expand(-1, 3, -1, -1))
    torch.testing.assert_close(seen[1], image)


def test_nothing_is_evaluated_where_it_is_off():
    class Never(ImageNetwork):
        def forward(self, x):
            raise AssertionError("evaluated")

    model = generator()
    for guided in (steering(model, 0.0, Never()), steering(model, 2.0, Never(), interval=(0.0, 1e-3))):
        assert torch.equal(guided(x, t, y).x_0, model(x, t, y).x_0)
    assert torch.equal(steering(model, 2.0, Never())(x, t, None).x_0, model(x, t).x_0)


def small(classes: int) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(144, classes)).eval()


def test_networks_come_from_files(tmp_path):
    """TorchScript, torch.export and torchvision: each answers, and steers, as the network that was saved."""
    network, image = small(3), torch.randn(5, 1, 8, 8)
    torch.jit.save(torch.jit.script(network), tmp_path / "scripted.pt")
    sizes = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(network, (image,), dynamic_shapes=sizes), tmp_path / "exported.pt2")
    model = Preconditioned(lively(unet()), Cosine(12.0, -10.0), V(), has_null=True)

    class Same(ImageNetwork):
        def forward(self, x):
            return network(x)

    expected = steering(model, network=Same())(image[:4], t, y).x_0
    for loaded in (TorchScript(str(tmp_path / "scripted.pt")), ExportedProgram(str(tmp_path / "exported.pt2"))):
        torch.testing.assert_close(loaded(image), network(image), rtol=1e-4, atol=1e-5)
        found = steering(model, network=loaded)(image[:4], t, y).x_0
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_torchvision_by_name(tmp_path):
    """Safetensors only: a pickle is refused, with the way to convert it."""
    from safetensors.torch import save_file
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    network, path = squeezenet1_1(num_classes=3).eval(), str(tmp_path / "weights.safetensors")
    save_file(network.state_dict(), path)
    loaded, image = Torchvision(path, "squeezenet1_1", 3), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded(image), network(image))
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    for name, weights, classes, sentence in (
        (
            "squeezenet1_1",
            path,
            4,
            "weights: .* squeezenet1_1: .* size mismatch",
        ),
        ("squeezenet1_1", "none.safetensors", 3, "weights: there is no file of weights at none"),
        ("squeezenet9", path, 3, "name: .* 'squeezenet9'"),
        ("squeezenet1_1", str(tmp_path / "weights.pth"), 3, "pickles are not read; convert it: python -c .*save_file"),
    ):
        with pytest.raises(ValueError, match=sentence):
            Torchvision(weights, name, classes)


@pytest.mark.parametrize("kind", [TorchScript, ExportedProgram])
def test_other_files_are_refused(tmp_path, kind, capfd):
    """In one sentence, and torch prints nothing beside it."""
    (tmp_path / "text").write_text("nothing")
    for name, sentence in (("text", "is no"), ("none", "there is no")):
        with pytest.raises(ValueError, match=sentence) as told:
            kind(str(tmp_path / name))
        assert "\n" not in str(told.value) and "miniz" not in str(told.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "changed, sentence",
    [
        ({"num_classes": 4}, "has 4 classes, .* has 3"),
        ({"channels": 2}, "channels must be 1 or 3"),
        ({"mean": [0.5, 0.5]}, "mean and std must be 1 or 1 numbers"),
        ({"std": [0.0]}, "std positive"),
        ({"scale": math.inf}, "scale must be"),
    ],
)
def test_invalid_arguments_raise(changed, sentence):
    with pytest.raises(ValueError, match=sentence):
        steering(generator(), **changed)


def test_a_compiled_generator_is_not_differentiated():
    model = generator()
    model.backbone.compile(backend="eager")
    with pytest.raises(SamplingError, match="compile=false"):
        steering(model)(x, t, y)


def test_a_network_with_another_number_of_outputs_raises():
    with pytest.raises(SamplingError, match=r"guidance.num_classes=3 .* \[4, 5\]"):
        steering(generator(), network=Linear(classes=5))(x, t, y)


def test_a_network_that_rejects_the_images_raises_one_line():
    """In the words of a mistake, not of a crash, with the keys that decide; vectors are no images."""
    sentence = r"cannot take images \[3, 1, 8, 8\], which guidance.channels and guidance.size decide: .*mat1 and mat2"
    with pytest.raises(SamplingError, match=sentence):
        steering(generator(), network=Linear(side=9)).log_prob(x[:3])
    with pytest.raises(SamplingError, match=r"needs images .* \[4, 2\]"):
        steering(generator()).log_prob(x[:, 0, 0, :2])


def test_a_network_runs_in_its_own_precision():
    """Float32 weights under a float64 oracle."""
    found = steering(generator(), network=Linear().float()).log_prob(x)
    torch.testing.assert_close(found.double(), steering(generator()).log_prob(x), rtol=1e-5, atol=1e-5)


def test_from_the_configuration(tmp_path):
    """The file of guidance=clean_classifier; a foreign configuration may not run a file's program, and a path must be there."""
    from hydra import compose, initialize_config_dir

    from diffguide.config.build import config_dir

    torch.jit.save(torch.jit.script(small(3)), tmp_path / "scripted.pt")
    path = tmp_path / "scripted.pt"
    facts = [
        "guidance.num_classes=3",
        "guidance.size=null",
        "guidance.channels=1",
        "guidance.mean=[0.5]",
        "guidance.std=[0.5]",
    ]
    with initialize_config_dir(config_dir(), version_base="1.3"):
        cfg = compose("sample", ["guidance=clean_classifier", f"guidance.network.path={path}", *facts])
        other = compose(
            "sample", ["guidance=clean_classifier", "guidance/network=torchvision", "guidance.num_classes=3"]
        )
    built = build(cfg.guidance, "guidance", generator())
    assert isinstance(built.network, TorchScript) and built.scale == 1.0
    assert other.guidance.network.name == "resnet18"
    node = OmegaConf.to_container(cfg.guidance)
    with pytest.raises(CheckpointError, match="trust="):
        validate_config(node, "guidance")
    validate_config(node, "guidance", ["diffguide.guidance.clean_classifier.TorchScript"])
    cfg.guidance.network.path = str(tmp_path / "none.pt")
    with pytest.raises(ConfigError, match="there is no TorchScript file"):
        build(cfg.guidance, "guidance", generator())
