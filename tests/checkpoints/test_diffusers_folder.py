"""Folders of diffusers against the library's own networks and schedulers."""

import json

import diffusers
import pytest
import safetensors.torch
import torch
from diffusers_folders import DIT, TOKENS, dit, randomize, save_pipeline, unet

import diffguide
from diffguide.backbones import Embedding
from diffguide.backbones.diffusers_network import DiffusersNetwork
from diffguide.checkpoints.store import CheckpointError, load
from diffguide.guidance import PAG, SLG, ClassifierFree
from diffguide.samplers import DDIM
from diffguide.samplers.discrete_grids import Trailing

LEVELS = (0, 3, 250, 600, 999)  # indices of diffusers; never one alone


def closeness(one, other):
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("kind", ["unconditional", "classes", "dit"])
def test_predictions_are_those_of_the_library(tmp_path, prediction_type, kind):
    network = {
        "unconditional": lambda: unet(),
        "classes": lambda: unet(num_class_embeds=4),
        "dit": lambda: dit(),
    }[kind]()
    scheduler = diffusers.DDPMScheduler(beta_schedule="linear", prediction_type=prediction_type)
    model = diffguide.load(save_pipeline(tmp_path / "p", network, scheduler))
    x = torch.randn(3, *model.shape)
    labels = None if kind == "unconditional" else torch.tensor([0, 2, 3])
    rows = labels
    if kind == "dit":
        labels, rows = torch.tensor([0, -1, 4]), torch.tensor([0, 5, 4])
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)  # the scheduler's own are rounded to float32
    for k in LEVELS:
        abar = (1 - betas).cumprod(0)[k]
        named = {} if rows is None else {"class_labels": rows}
        out = network(x, timestep=torch.full((3,), k), **named).sample[:, : x.shape[1]]
        alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        x_0, eps = {
            "epsilon": lambda: ((x - sigma * out) / alpha, out),
            "v_prediction": lambda: (alpha * x - sigma * out, sigma * x + alpha * out),
            "sample": lambda: (out, (x - alpha * out) / sigma),
        }[prediction_type]()
        for t in (torch.tensor((k + 1) / 1000, dtype=torch.float64), torch.full((3,), (k + 1) / 1000).double()):
            prediction = model(x, t, labels)
            assert closeness(prediction.x_0, x_0) < 1e-5
            assert closeness(prediction.eps, eps) < 1e-5


def test_ddim_with_guidance_is_that_of_the_library(tmp_path):
    network = unet(num_class_embeds=4)
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        timestep_spacing="trailing",
    )
    model = diffguide.load(save_pipeline(tmp_path / "p", network, scheduler), null_class=3)
    z, y, scale = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0]), 2.5
    x = z.clone()
    scheduler.set_timesteps(20)
    for k in scheduler.timesteps:
        strong = network(x, k, class_labels=y).sample
        weak = network(x, k, class_labels=torch.full_like(y, 3)).sample
        x = scheduler.step(weak + scale * (strong - weak), k, x).prev_sample
    guided = ClassifierFree(model, scale)
    sampler = DDIM(20, Trailing(1000))
    times = sampler.times(guided)
    mine = sampler(guided, z, times, y, None)
    assert closeness(mine, x) < 1e-4


def test_guidance_of_attention_is_that_of_processors_of_the_library(tmp_path):
    """PAG with the identity as the map of two layers, written as an attention processor."""
    network = unet()
    model = diffguide.load(save_pipeline(tmp_path / "p", network, diffusers.DDPMScheduler()))
    assert list(model.attention_layers) == [8, 8, 8, 8]
    x, t = torch.randn(2, 3, 16, 16), torch.tensor(0.6, dtype=torch.float64)
    guided = PAG(model, 3.0, layers=[0, 2])(x, t)
    places = [network.down_blocks[1].attentions[0], network.mid_block.attentions[0], *network.up_blocks[0].attentions]
    strong = network(x, 599).sample
    for place in (places[0], places[2]):
        place.set_processor(IdentityMap())
    weak = network(x, 599).sample
    assert closeness(guided.eps, weak + 3 * (strong - weak)) < 1e-5
    assert closeness(model(x, t).eps, strong) < 1e-5  # nothing of the perturbation stays


class IdentityMap:
    """The attention of diffusers' U-Nets with every position attending to itself."""

    def __call__(self, attention, hidden_states, *args, **kwargs):
        batch, channels, height, width = hidden_states.shape
        h = attention.group_norm(hidden_states).flatten(2).mT
        h = attention.to_out[0](attention.to_v(h)).mT.reshape(batch, channels, height, width)
        return (h + hidden_states) / attention.rescale_output_factor


def test_skipped_blocks_are_their_skip_connections(tmp_path):
    network = dit()
    model = diffguide.load(save_pipeline(tmp_path / "p", network, diffusers.DDPMScheduler()))
    assert list(model.residual_blocks) == [4, 4, 4]
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor(0.3, dtype=torch.float64), torch.tensor([1, -1])
    weak = SLG(model, layers=[1], scale=0.0)(x, t, y)
    del network.transformer_blocks[1]
    eps = network(x, torch.tensor([299, 299]), torch.tensor([1, 5])).sample[:, :4]
    assert closeness(weak.eps, eps) < 1e-5


@pytest.mark.parametrize("null", [0, 2, 3])
def test_the_null_class_may_be_any_row(tmp_path, null):
    network = unet(num_class_embeds=4)
    model = diffguide.load(save_pipeline(tmp_path / "p", network, diffusers.DDPMScheduler()), null_class=null)
    assert model.num_classes == 3 and model.has_null
    x, t = torch.randn(4, 3, 16, 16), torch.tensor(0.5, dtype=torch.float64)
    rows = [row for row in range(4) if row != null]
    wanted = network(x, 499, class_labels=torch.tensor([*rows, null])).sample
    assert closeness(model(x, t, torch.tensor([0, 1, 2, -1])).eps, wanted) < 1e-5


def test_without_a_null_class_guidance_by_it_is_refused(tmp_path):
    folder = save_pipeline(tmp_path / "p", unet(num_class_embeds=4), diffusers.DDPMScheduler())
    model = diffguide.load(folder)
    assert model.num_classes == 4 and not model.has_null
    with pytest.raises(ValueError, match="null_class"):
        ClassifierFree(model, 2.0)
    with pytest.raises(ValueError, match="no null class"):
        model(torch.randn(1, 3, 16, 16), torch.tensor(0.5, dtype=torch.float64), torch.tensor([-1]))
    with pytest.raises(CheckpointError, match="null_class"):
        diffguide.load(folder, null_class=4)


def test_names_and_files_of_other_versions_are_read(tmp_path):
    """Attention layers as diffusers named them before 2023, several shards, a half precision variant."""
    network = unet()
    x, t = torch.randn(2, 3, 16, 16), torch.tensor(0.5, dtype=torch.float64)
    wanted = network(x, 499).sample
    folder = save_pipeline(tmp_path / "p", network, diffusers.DDPMScheduler(), max_shard_size="40KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 2
    assert closeness(diffguide.load(folder)(x, t).eps, wanted) < 1e-5
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = network.state_dict()
    for new, name in old.items():
        tensors = {key.replace(f".{new}.", f".{name}."): value for key, value in tensors.items()}
    for file in (folder / "unet").glob("diffusion*"):
        file.unlink()
    safetensors.torch.save_file(tensors, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert closeness(diffguide.load(folder)(x, t).eps, wanted) < 1e-5


def test_infinity_in_a_scheduler_is_read(tmp_path):
    """As diffusers writes lambda_min_clipped of its DPM-Solver."""
    folder = save_pipeline(tmp_path / "p", unet(), diffusers.DPMSolverMultistepScheduler(beta_end=0.03))
    file = folder / "scheduler" / "scheduler_config.json"
    assert "-Infinity" in file.read_text()
    assert load(folder).config["schedule"]["beta_end"] == 0.03
    for old, new, named in ((": -Infinity", ": NaN", "NaN"), (": 1000", ": Infinity", "steps")):
        changed = file.read_text().replace(old, new)
        (tmp_path / named).mkdir()
        other = save_pipeline(tmp_path / named / "p", unet(), diffusers.DDPMScheduler())
        (other / "scheduler" / "scheduler_config.json").write_text(changed)
        with pytest.raises(CheckpointError, match=named):
            diffguide.load(other)


def test_shards_of_a_variant_are_read(tmp_path):
    network = unet(norm_eps=1e-5).half()
    save_pipeline(tmp_path / "p", network, diffusers.DDPMScheduler(), variant="fp16", max_shard_size="20KB")
    assert len(list((tmp_path / "p" / "unet").glob("*.fp16-*-of-*.safetensors"))) > 2
    held = diffguide.load(tmp_path / "p").backbone.network.state_dict()
    assert all(torch.equal(value.float(), held[name]) for name, value in network.state_dict().items())


def test_images_may_be_rectangles(tmp_path):
    network = unet(sample_size=(16, 24))
    model = diffguide.load(save_pipeline(tmp_path / "p", network, diffusers.DDPMScheduler()))
    x = torch.randn(2, *model.shape)
    assert model.shape == [3, 16, 24] and list(model.attention_layers) == [8, 8, 8, 8]
    assert closeness(model(x, torch.tensor(0.5, dtype=torch.float64)).eps, network(x, 499).sample) < 1e-5


def test_a_network_beside_its_scheduler_needs_no_pipeline(tmp_path):
    network = unet()
    network.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="scheduler_config.json"):
        diffguide.load(tmp_path)
    diffusers.DDPMScheduler().save_pretrained(tmp_path)
    assert diffguide.load(tmp_path).shape == [3, 16, 16]


def test_dit_as_it_was_saved_before_2024_and_its_class_names(tmp_path):
    network = dit()
    folder = save_pipeline(tmp_path / "p", network, diffusers.DDIMScheduler(), {"0": "tench, fish", "1": "goldfish"})
    file = folder / "transformer" / "config.json"
    config = json.loads(file.read_text()) | {
        "_class_name": "Transformer2DModel",
        "norm_type": "ada_norm_zero",
        "cross_attention_dim": None,
        "use_linear_projection": False,
    }
    file.write_text(json.dumps(config))
    model = diffguide.load(folder)
    assert model.class_names == ["tench, fish", "goldfish", "2", "3", "4"]
    assert model.has_null and model.backbone.learned_variance


@pytest.mark.parametrize("network", sorted(TOKENS))
def test_networks_with_given_embeddings(network):
    arguments = TOKENS[network]
    backbone = DiffusersNetwork(3, size=16, network=network, arguments=arguments, condition_tokens=5).eval()
    randomize(backbone.network)
    x, vectors = torch.randn(3, 3, 16, 16), torch.randn(3, 5, 8)
    keep = torch.tensor([True, False, True])
    log_snr = backbone.timesteps.schedule.log_snr(torch.tensor([0.3, 0.3, 0.9]))
    out = backbone(x, log_snr, Embedding(vectors.flatten(1), keep))
    given = torch.where(keep[:, None, None], vectors, 0.0)
    more = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}} if "PixArt" in network else {}
    steps = torch.tensor([299.0, 299.0, 899.0])
    wanted = backbone.network(x, encoder_hidden_states=given, timestep=steps, return_dict=False, **more)[0]
    assert torch.allclose(out, wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("network", "size", "argument", "needs"),
    [
        ("UNet2DConditionModel", 16, {"num_class_embeds": 4}, "class labels"),
        ("UNet2DConditionModel", 16, {"addition_embed_type": "text"}, "second text"),
        ("PixArtTransformer2DModel", 128, {"use_additional_conditions": None}, "size of the picture"),
    ],
)
def test_networks_that_need_other_inputs_are_refused(network, size, argument, needs):
    arguments = TOKENS[network] | argument
    with pytest.raises(ValueError, match=f"arguments.{next(iter(argument))} .* needs .*{needs}"):
        DiffusersNetwork(3, size=size, network=network, arguments=arguments, condition_tokens=5)


def test_attention_to_as_many_tokens_as_positions_is_none_of_the_image():
    arguments = TOKENS["UNet2DConditionModel"]
    backbone = DiffusersNetwork(3, size=16, network="UNet2DConditionModel", arguments=arguments, condition_tokens=64)
    assert list(backbone.attention_layers) == [8, 8, 8, 8]
    backbone = DiffusersNetwork(3, size=16, network="UNet2DConditionModel", arguments=arguments, condition_tokens=7)
    assert list(backbone.attention_layers) == [8, 8, 8, 8]


def test_the_label_dropout_of_the_library_is_off_in_training():
    """It draws once per block; here the objective drops labels, once per example."""
    arguments = {key: value for key, value in DIT.items() if key not in ("sample_size", "num_embeds_ada_norm")}
    backbone = DiffusersNetwork(4, 8, 5, 8, "DiTTransformer2DModel", arguments).train()
    randomize(backbone.network)
    x, y = torch.randn(64, 4, 8, 8), torch.zeros(64, dtype=torch.long)
    assert torch.equal(backbone(x, torch.zeros(64), y), backbone(x, torch.zeros(64), y))
    assert not torch.allclose(backbone(x, torch.zeros(64), y), backbone(x, torch.zeros(64), y - 1))
