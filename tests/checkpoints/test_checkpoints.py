"""Checkpoints: reading returns what was written, and a foreign file runs no code."""

import copy
import json

import pytest
import safetensors
import safetensors.torch
import torch
from small_checkpoint import change, drop, put, save, small

import diffguide
from diffguide.checkpoints import store as checkpoints
from diffguide.checkpoints.optimizer_state import optimizer_state
from diffguide.checkpoints.store import CheckpointError


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return save(tmp_path_factory.mktemp("good"))


def test_load_returns_the_denoiser(short_run):
    denoiser = diffguide.load(short_run)
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    prediction = denoiser(x, torch.tensor(0.5, dtype=torch.float64), torch.tensor([0, 5, -1]))
    alpha, sigma = denoiser.schedule.alpha_sigma(0.5)
    torch.testing.assert_close(alpha * prediction.x_0 + sigma * prediction.eps, x)
    assert denoiser.num_classes == 10 and denoiser.has_null and not denoiser.training
    assert not any(parameter.requires_grad for parameter in denoiser.parameters())


def test_average_and_last_weights_differ(short_run):
    averaged, last = diffguide.load(short_run), diffguide.load(short_run, weights="objective")
    assert any(not torch.equal(a, b) for a, b in zip(averaged.parameters(), last.parameters()))


def test_a_run_folder_stands_for_its_newest_checkpoint(short_run):
    files = sorted((short_run / "checkpoints").glob("*.safetensors"))
    assert len(files) == 6  # three checkpoints, each with its optimiser
    assert checkpoints.find(short_run).name == "0000000320.safetensors"


def test_the_metadata_states_version_and_configuration(short_run):
    with safetensors.safe_open(checkpoints.find(short_run), framework="pt") as file:
        assert list(file.metadata()) == ["diffguide"]  # one key: several would be written in any order
        metadata = json.loads(file.metadata()["diffguide"])
    assert metadata["format"] == 2 and len(metadata["sha256"]) == 64
    assert metadata["class_names"] == list("0123456789") and metadata["shape"] == [1, 8, 8]
    assert metadata["config"]["p_uncond"] == 0.1 and "${" not in json.dumps(metadata)


def test_a_trusted_class_is_built(good, tmp_path, monkeypatch):
    """With inner nodes, trusted by name too, and arguments without annotations."""
    (tmp_path / "my_networks.py").write_text(
        "from diffguide.backbones import MLP\n"
        "class Part:\n"
        "    pass\n"
        "class Mine(MLP):\n"
        "    def __init__(self, width, part, note):\n"
        "        super().__init__(2, None, 4, width, 1, 2, 0.5, True, 0)\n"
        "        self.part, self.note = part, note\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    node = {"_target_": "my_networks.Mine", "width": 8, "part": {"_target_": "my_networks.Part"}, "note": [1, "two"]}
    path = change(good, tmp_path / "1.safetensors", put("config.backbone", node))
    for trust in ((), ["my_networks.Part"], ["my_networks.Mine"], ["my_networks"], ["my_networks.Mine", "other.Part"]):
        with pytest.raises(CheckpointError, match=r"set trust=\[my_networks"):
            diffguide.load(path, trust=trust)
    backbone = diffguide.load(path, trust=["my_networks.Mine", "my_networks.Part"]).backbone
    assert type(backbone).__name__ == "Mine" and type(backbone.part).__name__ == "Part" and backbone.note == [1, "two"]
    with pytest.raises(CheckpointError, match="trust must be a list"):
        diffguide.load(path, trust="my_networks.Mine, my_networks.Part")


def test_weights_of_other_precisions_are_read(good, tmp_path):
    """Runs with engine.precision=bf16-true or 64-true write them."""
    for dtype in (torch.bfloat16, torch.float64):

        def cast(tensors, metadata):
            tensors.update({name: value.to(dtype) for name, value in tensors.items()})

        loaded = diffguide.load(change(good, tmp_path / "1.safetensors", cast))
        for value, wanted in zip(loaded.parameters(), diffguide.load(good).parameters()):
            assert value.dtype == torch.float32 and torch.equal(value, wanted.to(dtype).float())


def test_missing_and_foreign_files_are_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        diffguide.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        diffguide.load(tmp_path)
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "1.safetensors")
    with pytest.raises(CheckpointError, match="not a checkpoint of diffguide"):
        diffguide.load(tmp_path / "1.safetensors")
    with pytest.raises(CheckpointError, match="weights must be ema"):
        diffguide.load(tmp_path / "1.safetensors", weights="best")


def test_a_run_folder_may_hold_anything_else(tmp_path):
    (tmp_path / "checkpoints" / "0000000009.safetensors").mkdir(parents=True)
    path = save(tmp_path / "checkpoints")
    assert checkpoints.find(tmp_path) == path
    for nowhere in ("~nobody_of_this_name/x", "x" * 5000, "\0"):
        with pytest.raises(CheckpointError, match="no checkpoint at"):
            checkpoints.find(nowhere)


def test_training_continues_from_the_saved_state(tmp_path):
    """Weights, average and the optimiser's memory come back; its settings are today's."""
    trained, fresh = small(), small()
    path = save(tmp_path)
    for module in (fresh.objective, fresh.ema):
        torch.nn.utils.vector_to_parameters(torch.zeros(10**4), module.parameters())
    fresh.optimizer.state.clear()
    fresh.optimizer.param_groups[0]["betas"] = (0.5, 0.5)
    state = checkpoints.load_training_state(path, fresh.objective, fresh.ema, fresh.optimizer)
    assert state.facts["images"] == 7 and state.sums["loss"] == 3 and state.precision == {"scale": 2.0}
    assert fresh.optimizer.param_groups[0]["betas"] == (0.5, 0.5)
    for name in ("objective", "ema"):
        wanted, got = getattr(trained, name).state_dict(), getattr(fresh, name).state_dict()
        assert all(torch.equal(wanted[key], got[key]) for key in wanted)
    wanted, got = trained.optimizer.state_dict()["state"], fresh.optimizer.state_dict()["state"]
    assert wanted.keys() == got.keys() and wanted[0].keys() == got[0].keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert all(torch.equal(wanted[index][key], got[index][key]) for index in wanted for key in wanted[index])


def test_the_state_of_an_optimiser_is_in_the_order_of_its_parameters():
    """torch's fused AdamW on the CPU takes the memory of both for one order, and files have the usual one."""
    ends = []
    for stopped in (False, True):
        torch.manual_seed(0)
        network = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        for step in range(2):
            if step and stopped:
                held = {
                    f"{index}.{name}": value.clone(memory_format=torch.contiguous_format)
                    for index, values in optimizer.state_dict()["state"].items()
                    for name, value in values.items()
                }
                state = optimizer_state(held, {"parameters": [2], "state": {}}, optimizer)
                optimizer = torch.optim.AdamW(network.parameters(), fused=True)
                optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
            network(torch.randn(2, 3, 5, 5)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append([*network.parameters(), *(value for each in optimizer.state.values() for value in each.values())])
    assert all(map(torch.equal, *ends))


def memory(name, value):
    """An edit that replaces a tensor of the optimiser's memory."""
    return lambda tensors, metadata: tensors.update({name: value})


FOREIGN = {
    "a parameter that is not there": (memory("99.exp_avg", torch.ones(1)), "no state of one of"),
    "no number": (memory("x.exp_avg", torch.ones(1)), "no state of one of"),
    "no name": (memory("0", torch.ones(1)), "no state of one of"),
    "a path": (memory("0.a.b", torch.ones(1)), "no state of one of"),
    "another shape": (memory("0.exp_avg", torch.ones(3)), "has the shape"),
    "more rows": (memory("0.exp_avg", torch.ones(99, 99)), "has the shape"),
    "NaN": (memory("0.exp_avg", torch.tensor(float("nan"))), "has NaN"),
    "other parameters": (put("parameters", [3]), "an optimiser of"),
    "more groups": (put("parameters", [3, 3]), "an optimiser of"),
    "no parameters": (drop("parameters"), "an optimiser of"),
    "a state that is a list": (put("state", []), "a mapping of numbers"),
    "a state of nodes": (put("state", {"0.x": {"_target_": "os.system"}}), "a mapping of numbers"),
    "no state": (drop("state"), "a mapping of numbers"),
    "a precision of nodes": (put("precision", {"scale": {"_target_": "os.system"}}), "a mapping of numbers"),
    "sums that are rows": (memory("sums.loss", torch.ones(2)), "its sums must be"),
    "sums without a count": (lambda tensors, metadata: tensors.pop("sums.count"), "its sums must be"),
}


@pytest.mark.parametrize("edit, message", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_optimiser_changes_nothing(good, tmp_path, edit, message):
    path, beside = tmp_path / good.name, good.with_suffix(".optimizer.safetensors")
    path.write_bytes(good.read_bytes())
    change(beside, tmp_path / beside.name, edit)
    fresh = small()
    torch.nn.utils.vector_to_parameters(torch.zeros(10**4), fresh.objective.parameters())
    before = copy.deepcopy(fresh.optimizer.state_dict())
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoints.load_training_state(path, fresh.objective, fresh.ema, fresh.optimizer)
    assert str(tmp_path / beside.name) in str(caught.value)
    assert not any(value.any() for value in fresh.objective.parameters())
    after = fresh.optimizer.state_dict()["state"]
    assert all(torch.equal(after[key][name], value) for key in after for name, value in before["state"][key].items())


def test_a_checkpoint_without_its_optimiser_is_an_error(good, tmp_path):
    fresh, path = small(), tmp_path / good.name
    path.write_bytes(good.read_bytes())
    with pytest.raises(CheckpointError, match="there is no file"):
        checkpoints.load_training_state(path, fresh.objective, fresh.ema, fresh.optimizer)
    change(good.with_suffix(".optimizer.safetensors"), path.with_suffix(".optimizer.safetensors"), lambda *_: None)
    change(good, path, lambda tensors, metadata: tensors.pop("objective.model.backbone.linear_in.weight"))
    with pytest.raises(CheckpointError, match="lacks 1 tensors"):
        checkpoints.load_training_state(path, fresh.objective, fresh.ema, fresh.optimizer)


@pytest.mark.parametrize("shape", [[1, 4096, 4096], [1, 16, 16], [1, 8, 4], [8, 8], [1]])
def test_the_shape_is_that_of_the_data(tiny_run, tmp_path, shape):
    """The U-Net itself takes sides that no data of its had, and would compute for ever."""
    path = change(checkpoints.find(tiny_run), tmp_path / "1.safetensors", put("shape", shape))
    with pytest.raises(CheckpointError, match=r"differs from \[1, 8, 8\]"):
        checkpoints.load(path)
