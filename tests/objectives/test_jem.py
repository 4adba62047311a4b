"""Training a joint energy: its loss, its buffer, what it learns, and how it comes back from divergence."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from joint_energies import MixtureLogits
from networks import lively, mlp
from small_checkpoint import small
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from diffguide.backbones import Backbone
from diffguide.checkpoints import store as checkpoints
from diffguide.objectives import JEM, Diverged
from diffguide.randomness import normal, uniform
from diffguide.schedules import Cosine, NoSchedule
from diffguide.train import main

OPTIONS = {
    "ce_weight": 0.7, "ml_weight": 0.4, "energy_l2": 0.1, "conditional": True, "steps": 3, "step_size": 0.05,
    "noise_scale": 0.1, "size": 60, "reinit": 0.3, "noise": 0.2, "max_gap": 50.0, "max_restores": 5,
}  # fmt: skip


def jem(backbone=None, schedule=None, **changed) -> JEM:
    network = lively(mlp(out_features=3, num_classes=0, noise_conditioned=False)).requires_grad_(True)
    return JEM(backbone or network, schedule, **OPTIONS | changed).train()


def rng(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X, Y = torch.randn(16, 2, generator=rng(5)), torch.arange(16) % 4 - 1  # one in four without a class


@pytest.mark.parametrize("conditional", [True, False])
def test_the_loss_is_the_equation(conditional):
    """Written out anew from the same random numbers: noise on the data, a buffer, chains, three terms."""
    objective = jem(conditional=conditional)
    loss, g, f = objective(X, Y, rng()), rng(), lambda x: objective.model.backbone(x, None)
    x = X + 0.2 * normal(X.shape, g, torch.float32)
    buffer = 2 * torch.rand(60, 2, generator=g) - 1
    u = uniform((16,), g, torch.float64)
    rows = [int(20 * v) * 3 + int(y) if conditional and y >= 0 else int(60 * v) for v, y in zip(u, Y)]
    new = uniform((16,), g, torch.float32) < 0.3
    fresh = 2 * uniform(X.shape, g, torch.float32) - 1
    samples = torch.stack([fresh[i] if new[i] else buffer[row] for i, row in enumerate(rows)])

    def energy(x):
        logits = f(x)
        picked = logits[torch.arange(16), Y.clamp(min=0)]
        return -torch.where((Y >= 0) & conditional, picked, logits.logsumexp(1))

    for _ in range(3):
        samples = samples.detach().requires_grad_()
        (slope,) = torch.autograd.grad(-energy(samples).sum(), samples)
        samples = samples.detach() + 0.05 * slope + 0.1 * normal(X.shape, g, torch.float32)
    ce = torch.where(Y >= 0, -f(x).log_softmax(1)[torch.arange(16), Y.clamp(min=0)], 0.0)
    of_data, of_samples = energy(x), energy(samples)
    expected = 0.7 * ce + 0.4 * (of_data - of_samples) + 0.1 * (of_data**2 + of_samples**2)
    torch.testing.assert_close(loss.per_example, expected)
    for name, part in {"ce": ce, "energy_data": of_data, "energy_samples": of_samples}.items():
        torch.testing.assert_close(loss.terms[name], part.detach())
    for row, sample in zip(rows, samples):  # the last for a place stays
        buffer[row] = sample
    torch.testing.assert_close(objective.buffer, buffer)
    loss.per_example.mean().backward()
    ours = objective.model.backbone.linear_out.weight.grad.clone()
    objective.zero_grad()
    expected.mean().backward()
    torch.testing.assert_close(ours, objective.model.backbone.linear_out.weight.grad)


def test_without_its_second_term_it_is_a_plain_classifier():
    objective = jem(ml_weight=0.0, max_gap=1e-9)
    loss = objective(X, Y, rng())
    torch.testing.assert_close(
        loss.per_example.detach(), 0.7 * loss.terms["ce"] + 0.1 * loss.terms["energy_data"].square()
    )
    objective.finish_step(lambda tensor: tensor)
    assert objective.memory() == {} and set(loss.terms) == {"ce", "accuracy", "energy_data"}


def test_places_in_the_buffer():
    objective, y = jem(size=62), torch.arange(3000) % 3
    rows = objective.draw_rows(y, rng())
    assert torch.equal(rows % 3, y) and set(rows.tolist()) == set(range(60))
    assert set(jem(size=62, conditional=False).draw_rows(y, rng()).tolist()) == set(range(62))
    new = jem(reinit=1.0, steps=1, noise_scale=0.0, step_size=1e-9)
    samples = new.draw_samples(X, Y, rng())
    assert (
        samples.abs().max() <= 1 and not (samples[:, None] == 2 * torch.rand(60, 2, generator=rng()) - 1).all(2).any()
    )
    old = jem(reinit=0.0, steps=1, noise_scale=0.0, step_size=1e-9)
    begun = old.draw_samples(X, Y, rng())
    assert (begun[:, None].sub(2 * torch.rand(60, 2, generator=rng()) - 1).abs().amax(2) < 1e-6).any(1).all()


def test_chains_are_run_without_dropout():
    objective, modes = jem(), []
    objective.model.backbone.register_forward_pre_hook(lambda network, _: modes.append(network.training))
    objective(X, Y, rng())
    assert modes == [True, False, False, False, True] and objective.model.training  # data, three steps, the samples


def test_held_out_data_move_no_chain():
    objective = jem()
    with torch.no_grad():
        loss = objective(X, Y, rng())
    objective.eval()
    held = objective(X, Y, rng())
    assert objective.buffer is None and torch.equal(loss.per_example, held.per_example)
    ce = torch.nn.functional.cross_entropy(objective.model.logits(X), Y, ignore_index=-1, reduction="none")
    torch.testing.assert_close(held.per_example, ce)  # of the data as they are, without noise
    assert torch.equal(held.per_example, held.terms["ce"]) and float(held.terms["ce"][Y < 0].abs().sum()) == 0
    figures = objective.figures(held)
    assert set(figures) == {"accuracy", "nll", "energy"} and 0 <= figures["accuracy"] <= 1


class Confined(Backbone):
    """A small network beside a wide Gaussian, so that no chain leaves for good."""

    noise_conditioned, out_features = False, 2

    def __init__(self):
        super().__init__()
        layers = [nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 2)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x, log_snr, y=None):
        return self.layers(x) - 2 * x.square().sum(1, keepdim=True)


def test_it_learns_the_density_and_the_classes():
    """A mixture of two classes, 500 steps, chains with proper noise: differences of log p, and p(y | x), within their error."""
    truth = MixtureLogits([0.3, 0.7], [[-0.5, 0.2], [0.5, -0.1]], [[[0.04, 0.0], [0.0, 0.09]]] * 2, [0, 1])
    torch.manual_seed(0)
    chain = {"steps": 10, "step_size": 0.005, "noise_scale": None, "size": 2000, "reinit": 0.02, "noise": 0.0}
    objective = jem(Confined(), **chain | {"ce_weight": 1.0, "ml_weight": 1.0, "energy_l2": 0.0})
    optimizer = torch.optim.Adam(objective.parameters())
    ema = AveragedModel(objective, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    for step in range(500):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / 500)
        g = rng(step)
        y = (torch.rand(256, generator=g) < 0.7).long()
        x = torch.randn(256, 2, generator=g) * torch.tensor([0.2, 0.3]) + truth.means[y].float()
        objective(x, y, g).per_example.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update_parameters(objective)
    model, (across, along) = ema.module.model.eval(), (torch.linspace(-1, 1, 21), torch.linspace(-0.7, 0.8, 16))
    x = torch.stack(torch.meshgrid(across, along, indexing="ij"), -1).reshape(-1, 2)
    exact = truth(x, None)
    p = exact.logsumexp(1).softmax(0)
    with torch.no_grad():
        difference = model.log_density(x) - exact.logsumexp(1)
        posterior = (model.log_prob(x).exp() - exact.softmax(1)).abs().sum(1)
    assert float(p @ (difference - p @ difference).abs()) < 0.2  # nats; 0.12 here
    assert float(p @ posterior) < 0.02


@pytest.mark.parametrize(("change", "message"), [
    ({"schedule": Cosine(12.0, -10.0)}, "got Cosine: take schedule=none"),
    ({"ce_weight": -1.0}, "ce_weight must be"), ({"noise": -0.1}, "noise must be"),
    ({"ce_weight": 0.0, "ml_weight": 0.0}, "ce_weight and ml_weight must"),
    ({"step_size": 0.0}, "step_size must be"), ({"noise_scale": -1.0}, "noise_scale must be"),
    ({"reinit": 1.5}, "reinit must be"), ({"max_gap": 0.0}, "max_gap must be"),
    ({"steps": 0}, "steps must be"), ({"size": 2}, "size must be"),
    ({"max_restores": -1}, "max_restores must be"),
])  # fmt: skip
def test_impossible_arguments_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        jem(**change)
    assert jem(schedule=NoSchedule()).noise_scale == 0.1 and jem(noise_scale=None).noise_scale == 0.1**0.5


def test_diverging_energies_are_detected():
    objective = jem(max_gap=1e-6)
    objective(X, Y, rng())
    with pytest.raises(Diverged, match="more than objective.max_gap=1e-06"):
        objective.finish_step(lambda tensor: tensor)


# the run of the fixture jem_run: checkpoints at 0, 96, 192, 288 and 320 images, of which the newest three and the best stay


def files(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "checkpoints").iterdir()}


def metrics(run: Path) -> list[dict]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in ("images_per_second", "seconds", "data_wait")} for line in lines]


def test_a_resumed_run_is_the_same_run(jem_run, tmp_path, command):
    run = shutil.copytree(jem_run, tmp_path / "outputs/train/jem_digits/v001")
    for file in (run / "checkpoints").glob("0000000320*"):
        file.unlink()
    done = command(main, "resume=outputs/train/jem_digits/v001", at=tmp_path)
    assert done.code == 0, done.err
    assert files(run) == files(jem_run) and metrics(run) == metrics(jem_run)
    assert {"accuracy", "nll", "energy", "validation_loss"} <= metrics(run)[-1].keys()


def test_a_buffer_of_another_shape_is_refused(jem_run, tmp_path, command):
    objective = jem()
    for memory in ({"buffer": torch.zeros(59, 2)}, {"buffer": torch.zeros(60, 3)}, {"other": torch.zeros(60, 2)}):
        with pytest.raises(ValueError, match=r"replay buffer .* needs one of \[60, 2\]"):
            objective.remember(memory, [2])
    with pytest.raises(ValueError, match="not finite"):
        objective.remember({"buffer": torch.full((60, 2), torch.nan)}, [2])
    objective.remember({"buffer": torch.ones(60, 2)}, [2])
    assert torch.equal(objective.memory()["buffer"], torch.ones(60, 2))
    objective.remember({}, [2])
    assert objective.memory() == {}
    run = shutil.copytree(jem_run, tmp_path / "outputs/train/jem_digits/v001")
    beside = run / "checkpoints/0000000320.optimizer.safetensors"
    tensors, facts = checkpoints.read(beside)
    checkpoints.archives.write_sealed(beside, tensors | {"memory.buffer": torch.zeros(7, 1, 8, 8)}, facts)
    done = command(main, "resume=outputs/train/jem_digits/v001", "training.images=640", at=tmp_path)
    assert done.code == 1 and "replay buffer is {'buffer': [7, 1, 8, 8]}" in done.err and "Traceback" not in done.err
    with pytest.raises(ValueError, match="buffer, which Denoising"):
        small().objective.remember({"buffer": torch.zeros(1)}, [2])


def rigged(monkeypatch, bad: set[int], stop: int | None = None) -> list[int]:
    """Steps, counted over the process, at which it diverges; one at which a signal comes. Returns the buffers' sums."""
    seen: list[float] = []

    def finish_step(self, gather):
        seen.append(float(self.buffer.double().sum()))
        if len(seen) == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        if len(seen) in bad:
            raise Diverged("rigged")

    monkeypatch.setattr(JEM, "finish_step", finish_step)
    return seen


def arguments() -> list[str]:
    from conftest import JEM as ARGUMENTS

    return [*ARGUMENTS, "sampler.steps=1"]


def test_a_diverged_run_restarts_from_its_checkpoint_with_other_randomness(tmp_path, command, monkeypatch):
    """In its 2nd step, before any checkpoint but the first; in the 5th after that, which is one after the next checkpoint."""
    seen = rigged(monkeypatch, {2, 6})
    done = command(main, *arguments(), at=tmp_path)
    assert done.code == 0, done.err
    assert "rigged: back to 0 images, restore 1 of at most 5" in done.err
    assert "rigged: back to 96 images, restore 2 of at most 5" in done.err
    run = tmp_path / done.folder
    notes = [line for line in metrics(run) if "restores" in line]
    assert notes == [{"images": 0, "restores": 1}, {"images": 96, "restores": 2}]
    assert [line["images"] for line in metrics(run) if "loss" in line] == [96, 160, 256, 320]
    assert checkpoints.read(checkpoints.find(run))[1]["restores"] == 2
    assert len(seen) == 2 + 4 + 7 and seen[0] != seen[2] and seen[5] != seen[6]  # the same steps, other numbers


def test_a_restored_run_that_was_stopped_resumes_bit_for_bit(tmp_path, command, monkeypatch):
    whole = tmp_path / "whole", tmp_path / "parts"
    for at in whole:
        at.mkdir()
    with monkeypatch.context() as patch:
        rigged(patch, {5})
        done = command(main, *arguments(), at=whole[0])
        assert done.code == 0, done.err
    with monkeypatch.context() as patch:
        rigged(patch, {5}, stop=8)
        stopped = command(main, *arguments(), at=whole[1])
        assert stopped.code == 143
    again = command(main, f"resume={done.folder}", at=whole[1])
    assert again.code == 0, again.err
    one, other = (files(at / done.folder) for at in whole)
    last = {name for name in one if name.startswith("0000000320")}
    assert last and all(one[name] == other[name] for name in last)


def test_a_run_that_always_diverges_ends_in_one_line(tmp_path, command):
    done = command(main, *arguments(), "objective.max_gap=1e-9", "objective.max_restores=2", at=tmp_path)
    assert done.code == 1 and "Traceback" not in done.err
    last = done.err.strip().splitlines()[-1]
    assert "more than objective.max_gap=1e-09, after 2 restores; the last good checkpoint is" in last
    run = tmp_path / "outputs/train/jem_digits/v001"
    assert [line["restores"] for line in metrics(run)] == [1, 2]
    assert [path.name for path in checkpoints.list_checkpoints(run / "checkpoints")] == ["0000000000.safetensors"]
