"""DiT and SiT, converted, against the published layer equations and against diffusers."""

import math

import pytest
import torch
from converted import convert, relative_error
from published_dit import Settings, dit, sit
from published_layers import Drawn

from diffguide.conversion.dit import DiT, DiTLayers, SiT
from diffguide.conversion.weights import ConversionError, PublishedWeights

LEVELS = (0, 17, 400, 777, 999)  # of 1000
SETTINGS = {
    "three heads": Settings(),
    "patches of 4, no learned variance": Settings(size=16, patch=4, channels=3, outputs=3, heads=1, width=32, depth=2),
    "no classes": Settings(classes=0, width=40, heads=5, ratio=2.5, depth=1, features=64),
}


def published(s: Settings) -> Drawn:
    weights = Drawn(0)
    dit(weights, torch.randn(1, s.channels, s.size, s.size), torch.zeros(1), torch.zeros(1, dtype=torch.long), s)
    return weights


def labels(s: Settings):
    """(Ours, theirs): two classes and the null condition, which is their last row."""
    ours = torch.tensor([s.classes - 1, 0, -1])
    return (ours, torch.where(ours < 0, s.classes, ours)) if s.classes else (None, None)


@pytest.mark.parametrize("name", SETTINGS)
def test_dit_is_that_of_the_published_equations(name):
    s = SETTINGS[name]
    weights = published(s)
    model, rng = convert(DiT(s.heads), weights), torch.Generator().manual_seed(1)
    y, their_y = labels(s)
    for level in LEVELS:
        x = torch.randn(3, s.channels, s.size, s.size, generator=rng)
        log_snr = model.schedule.log_snr(torch.tensor((level + 1) / 1000, dtype=torch.float64))
        ours = model.backbone(x, log_snr.float().expand(3), y)
        theirs = dit(weights, x, torch.full((3,), float(level)), their_y, s)
        assert ours.shape[1] == s.outputs and relative_error(ours, theirs) < 1e-5
    assert model.has_null and model.learned_variance == (s.outputs == 2 * s.channels)


@pytest.mark.parametrize("name", SETTINGS)
def test_sit_predicts_the_published_velocity(name):
    """x_t = t x_0 + (1 - t) eps, and the velocity is x_0 - eps, at the time t from noise to data."""
    s = SETTINGS[name]
    weights = published(s)
    model, rng = convert(SiT(s.heads), weights), torch.Generator().manual_seed(1)
    y, their_y = labels(s)
    for t in (0.01, 0.2, 0.5, 0.77, 0.99):
        x = torch.randn(3, s.channels, s.size, s.size, generator=rng)
        velocity = sit(weights, x, torch.full((3,), t), their_y, s)
        time = model.schedule.t_of(torch.tensor(2 * math.log(t / (1 - t)), dtype=torch.float64))
        prediction = model(x, time, y)
        assert relative_error(prediction.x_0 - prediction.eps, velocity) < 1e-5
        assert relative_error(t * prediction.x_0 + (1 - t) * prediction.eps, x) < 1e-5
    assert not model.learned_variance


def diffusers_names(published: Drawn, depth: int) -> dict[str, torch.Tensor]:
    """The tensors with the names of diffusers, which embeds timestep and class in every block."""
    state = {
        "pos_embed.proj.weight": published["x_embedder.proj.weight"],
        "pos_embed.proj.bias": published["x_embedder.proj.bias"],
        "proj_out_1.weight": published["final_layer.adaLN_modulation.1.weight"],
        "proj_out_1.bias": published["final_layer.adaLN_modulation.1.bias"],
        "proj_out_2.weight": published["final_layer.linear.weight"],
        "proj_out_2.bias": published["final_layer.linear.bias"],
    }
    for number in range(depth):
        theirs, ours = f"transformer_blocks.{number}", f"blocks.{number}"
        layers = {
            "norm1.linear": f"{ours}.adaLN_modulation.1", "attn1.to_out.0": f"{ours}.attn.proj",
            "ff.net.0.proj": f"{ours}.mlp.fc1", "ff.net.2": f"{ours}.mlp.fc2",
            "norm1.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
            "norm1.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
        }  # fmt: skip
        for kind in ("weight", "bias"):
            state |= {f"{theirs}.{name}.{kind}": published[f"{layer}.{kind}"] for name, layer in layers.items()}
            rows = published[f"{ours}.attn.qkv.{kind}"].chunk(3)
            state |= {f"{theirs}.attn1.{name}.{kind}": part for name, part in zip(("to_q", "to_k", "to_v"), rows)}
        table = published["y_embedder.embedding_table.weight"]
        state[f"{theirs}.norm1.emb.class_embedder.embedding_table.weight"] = table
    return state


def test_diffusers_has_the_same_output():
    """Its timestep embedding has a frequency shift of 1; the published one has none, which the test sets."""
    diffusers = pytest.importorskip("diffusers")
    s = Settings()
    weights = published(s)
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=s.heads, attention_head_dim=s.width // s.heads, in_channels=s.channels, out_channels=s.outputs,
        num_layers=s.depth, sample_size=s.size, patch_size=s.patch, num_embeds_ada_norm=s.classes,
    ).eval().requires_grad_(False)  # fmt: skip
    found = network.load_state_dict(diffusers_names(weights, s.depth), strict=False)
    assert not found.unexpected_keys and [name for name in found.missing_keys if name != "pos_embed.pos_embed"] == []
    for block in network.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    model, rng = convert(DiT(s.heads), weights), torch.Generator().manual_seed(1)
    y, their_y = labels(s)
    for level in LEVELS:
        x = torch.randn(3, s.channels, s.size, s.size, generator=rng)
        log_snr = model.schedule.log_snr(torch.tensor((level + 1) / 1000, dtype=torch.float64)).float()
        theirs = network(x, timestep=torch.full((3,), level), class_labels=their_y).sample
        assert relative_error(model.backbone(x, log_snr.expand(3), y), theirs) < 1e-4


def test_the_heads_of_published_widths_are_known():
    """S, B, L and XL, table 1 of the paper. Only shapes are read."""
    for width, heads in ((384, 6), (768, 12), (1024, 16), (1152, 16)):
        shapes = {
            "x_embedder.proj.weight": (width, 4, 2, 2), "t_embedder.mlp.0.weight": (width, 256),
            "blocks.0.mlp.fc1.weight": (4 * width, width), "final_layer.linear.weight": (32, width),
            "pos_embed": (1, 256, width),
        }  # fmt: skip
        tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        layers = DiTLayers(PublishedWeights(tensors, "DiT"), None, True)
        assert layers.heads == heads and layers.size == 32 and layers.outputs == 8 and layers.classes == 0


@pytest.mark.parametrize("changed, heads, message", [
    (lambda w: w["pos_embed"].add_(0.01), 3, "pos_embed is not the fixed sines"),
    (lambda w: None, None, "width 48, which no published model has; set architecture.heads"),
    (lambda w: None, 5, "width 48, which 5 heads do not divide"),
    (lambda w: w.update({"blocks.2.attn.qkv.weight": torch.zeros(9, 48)}), 3, "blocks.2.attn.qkv.weight has the shape [9, 48]"),
    (lambda w: w.update({"blocks.1.attn.q_norm.weight": torch.zeros(16)}), 3, "blocks.1.attn.q_norm.weight has no place"),
    (lambda w: w.update({"final_layer.linear.weight": torch.zeros(20, 48)}), 3, "has 5 outputs per value of a patch"),
    (lambda w: w.clear(), 3, "no tensor x_embedder.proj.weight, which DiT has"),
])  # fmt: skip
def test_a_mismatch_names_the_tensor(changed, heads, message):
    weights = published(Settings())
    changed(weights)
    with pytest.raises(ConversionError) as error:
        convert(DiT(heads), weights)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_table_without_null_row_has_no_null_condition():
    model = convert(DiT(3, null_class=False), published(Settings()))
    assert model.num_classes == 6 and not model.has_null
    assert torch.equal(model.backbone.embedding.classes.weight[0], torch.zeros(48))
