"""engine.precision=auto: the choice with a faked measurement, its place in the run, and the measurement itself."""

import pytest
import torch
import yaml
from safetensors.torch import load_file

from diffguide.backbones import UNet
from diffguide.cli import training_job
from diffguide.cli.training_job import settle_precision
from diffguide.conditions.examples import ConditionedData
from diffguide.datasets import Dataset, Split
from diffguide.objectives import Denoising, Objective
from diffguide.runtime import precision
from diffguide.runtime.engine import build_fabric
from diffguide.runtime.precision import choose_precision, has_bfloat16, measure_ratio
from diffguide.schedules import Cosine
from diffguide.train import main
from diffguide.training import Training
from diffguide.training.job import TrainingJob

SMALL = ["backbone.channels=8", "backbone.head_channels=8", "backbone.multipliers=[1]", "backbone.attention=[8]",
         "backbone.blocks=1", "sampler.steps=2", "training.batch_size=32", "training.images=64"]  # fmt: skip
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
RUN = "outputs/train/digits/v001"


def fake(monkeypatch, instructions: tuple[str, ...], ratio: float | None) -> None:
    """A processor, and what is measured there; None = nothing may be measured."""

    def measure(*_):
        assert ratio is not None
        return ratio

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(instructions, True) | {"amx_fp16": True})
    monkeypatch.setattr(precision, "measure_ratio", measure)


@pytest.mark.parametrize(
    "instructions, processes, ratio, expected",
    [(("avx512_bf16",), 1, 0.7, "bf16-mixed"), (("amx_bf16",), 1, 0.94, "bf16-mixed"), (("bf16",), 1, 0.96, "32-true"),
     (("avx512_bf16",), 1, 1.3, "32-true"), ((), 1, None, "32-true"), ((), 2, None, "32-true"),
     (("amx_bf16",), 2, None, "bf16-mixed")],
)  # fmt: skip
def test_bfloat16_where_it_exists_and_is_faster(monkeypatch, instructions, processes, ratio, expected):
    """Several processes measure nothing, so that they agree."""
    fake(monkeypatch, instructions, ratio)
    assert choose_precision(CPU, processes, None, 4)[0] == expected


@pytest.mark.parametrize("supported, expected", [(True, "bf16-mixed"), (False, "32-true")])
def test_gpus_decide_by_their_instructions(monkeypatch, supported, expected):
    fake(monkeypatch, (), None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert choose_precision(CUDA, 1, None, 4)[0] == expected
    assert not has_bfloat16(torch.device("mps"))


@pytest.mark.parametrize("seconds, rows", [(1.0, [2]), (0.02, [2, 4, 8, 16, 20])])
def test_a_step_is_timed_with_few_rows_if_it_is_slow(monkeypatch, seconds, rows):
    """The clock is faked: float32 takes `seconds`, bfloat16 half of it. Both are timed alternately, the fastest counts."""
    now, seen = [0.0], []
    monkeypatch.setattr(precision.time, "process_time", lambda: now[0])

    def forward(count: int) -> torch.Tensor:
        mixed = torch.is_autocast_enabled("cpu")
        seen.append((count, mixed))
        now[0] += seconds * (0.5 if mixed else 1) * (1 + 0.1 / len(seen))  # later steps are faster
        return torch.ones((), requires_grad=True)

    ratio = measure_ratio(CPU, forward, 20)
    assert 0.49 < ratio < 0.51
    assert [count for count, _ in seen[: len(rows)]] == rows and not any(mixed for _, mixed in seen[: len(rows)])
    timed = seen[len(rows) + 1 :]
    assert [mixed for _, mixed in timed] == [False, True] * (len(timed) // 2) and {count for count, _ in timed} == {
        rows[-1]
    }
    assert len(timed) == 2 * (1 if seconds == 1 else -(-0.5 // (1.5 * seconds)))


def test_the_choice_is_fixed_in_the_run(tmp_path, command, monkeypatch):
    """The weights are those of the chosen precision; the log names it; a resumed run keeps it without a measurement."""
    fake(monkeypatch, ("avx512_bf16",), 0.6)
    monkeypatch.setattr(training_job, "MIN_WORK", 0)
    done = command(main, "engine.precision=auto", *SMALL, at=tmp_path)
    assert done.code == 0, done.err
    line = "engine.precision=auto: bf16-mixed, since a step in bf16-mixed takes 0.60 of one in 32-true"
    assert line in done.err and line in (tmp_path / RUN / "log.txt").read_text()
    assert read_precision(tmp_path / RUN) == "bf16-mixed"
    explicit = command(main, "engine.precision=bf16-mixed", "name=explicit", *SMALL, at=tmp_path)
    files = [path / "checkpoints/0000000064.safetensors" for path in (tmp_path / RUN, tmp_path / explicit.folder)]
    weights = [load_file(file) for file in files]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    fake(monkeypatch, ("avx512_bf16",), None)
    done = command(main, f"resume={RUN}", "engine.precision=auto", "training.images=96", at=tmp_path)
    assert done.code == 0, done.err
    assert read_precision(tmp_path / RUN) == "bf16-mixed"


def read_precision(folder) -> str:
    return yaml.safe_load((folder / "config.yaml").read_text())["engine"]["precision"]


@pytest.mark.parametrize("ratio, chosen", [(0.6, "bf16-mixed"), (1.2, "32-true")])
def test_a_measurement_leaves_no_trace(tmp_path, monkeypatch, ratio, chosen):
    """In the objective, in torch's random numbers and in the rest of the configuration; the engine computes as it chose."""
    config = {"engine": {"precision": "auto", "devices": 1}, "seed": 0}
    job = make_job(config)
    before = [value.clone() for value in job.objective.state_dict().values()]
    state = torch.get_rng_state()

    def measure(device, forward, rows):
        assert rows == 8 and (device, forward(5).shape) == (CPU, ())
        forward(8).backward()
        return ratio

    monkeypatch.setattr(training_job, "MIN_WORK", 0)
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(precision, "measure_ratio", measure)
    settle_precision(job)
    assert torch.equal(state, torch.get_rng_state()) and job.objective.training
    assert all(torch.equal(*pair) for pair in zip(before, job.objective.state_dict().values()))
    assert all(parameter.grad is None for parameter in job.objective.parameters())
    assert job.config == {"engine": {"precision": chosen, "devices": 1}, "seed": 0} == yaml.safe_load(job.config_yaml)
    with job.engine.autocast():
        assert torch.is_autocast_enabled("cpu") == (chosen == "bf16-mixed")


@pytest.mark.parametrize("images, other", [(64, False), (10**12, True)], ids=["short", "other objective"])
def test_float32_without_a_measurement(monkeypatch, images, other):
    fake(monkeypatch, ("amx_bf16",), None)
    job = make_job({"engine": {"precision": "auto"}}, images)
    if other:
        job.objective.__class__ = type("Other", (Objective,), {})
    settle_precision(job)
    assert job.config == {"engine": {"precision": "32-true"}} and not job.remarks


def make_job(config, images=64) -> TrainingJob:
    """A job of three examples, with batches of eight."""
    split = Split(torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 0]))
    objective = Denoising(UNet(1, None, 2, 8, 8, [1], 1, [8], 8), Cosine(), p_uncond=0.1)
    data = Dataset(split, split, split, ["a", "b"])
    training = Training(images=images, batch_size=8)
    examples = ConditionedData(data, objective.model)
    return TrainingJob(None, 0, build_fabric("cpu"), examples, objective, training, None, None, config, "")
