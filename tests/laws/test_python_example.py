"""The Python examples in the READMEs run unchanged; the sampling example gives the bytes of the command."""

import re
from contextlib import chdir
from pathlib import Path

import numpy
import pytest
import torch
from small_checkpoint import change

import diffguide
from diffguide.checkpoints.store import find
from diffguide.sample import main as sample

CHECKOUT = Path(__file__).resolve().parents[2]
# what a test may shrink
SMALLER = {
    "images=60_000": "images=256",
    "STEPS = 500": "STEPS = 3",
    "range(2000)": "range(200)",
    "Heun()": "Heun(steps=2)",
}


def run_examples(page: str, smaller: dict[str, str]) -> dict:
    """Executes the Python blocks of a page, one after the other, in one namespace, which is returned."""
    text = (CHECKOUT / page).read_text(encoding="utf-8")
    for long, short in smaller.items():
        text = text.replace(long, short)
    names: dict = {"__name__": page}
    for block in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
        above = "\n" * text.count("\n", 0, block.start(1))  # so that a traceback has the page's line
        exec(compile(above + block[1], str(CHECKOUT / page), "exec"), names)
    return names


def test_the_front_page_trains_and_samples():
    names = run_examples("README.md", SMALLER)
    assert names["images"].shape == (10, 8, 8, 1) and names["images"].dtype == numpy.uint8
    assert names["guided"].has_null


def test_the_training_loop_of_the_page_trains():
    names = run_examples("diffguide/training/README.md", SMALLER)
    assert names["step"] == 2 and names["loss"].per_example.isfinite().all()


@pytest.mark.parametrize("page", ["diffguide/README.md", "diffguide/oracles/README.md"])
def test_examples_of_the_readmes_run(page, capsys):
    names = run_examples(page, SMALLER)
    assert names["x"].isfinite().all() and capsys.readouterr().out


@pytest.mark.parametrize("page", ["diffguide/backbones/README.md", "diffguide/schedules/README.md"])
def test_short_examples_print_what_they_show(page, capsys):
    run_examples(page, SMALLER)
    assert capsys.readouterr().out


def test_the_sampler_of_the_example_is_of_second_order():
    """On N(0, 1/4) the flow is x_s = x_t sqrt(var_s / var_t): its error falls at least fourfold as steps double."""
    names = run_examples("diffguide/README.md", SMALLER)
    schedule = names["Cosine"]()
    law = names["GaussianMixture"]([1.0], [[0.0]], 0.25, labels=[0], schedule=schedule)

    def error(steps: int) -> float:
        sampler = names["Midpoint"](steps=steps, grid=names["Karras"]())
        times = sampler.times(law)
        alpha, sigma = schedule.alpha_sigma(times)
        std = (0.25 * alpha**2 + sigma**2).sqrt()
        return float((sampler(law, std[:1, None].clone(), times) / std[-1] - 1).abs())

    assert error(40) / error(80) > 3.8 and error(80) < 1e-3


def blur(tensors: dict, metadata: dict) -> None:
    """Weights that answer to everything."""
    rng = torch.Generator().manual_seed(0)
    for name, value in tensors.items():
        tensors[name] = value + 0.3 * torch.randn(value.shape, generator=rng) if value.is_floating_point() else value


def test_the_example_makes_what_the_command_writes(at, command):
    file = find(at / "outputs/train/digits/v001")
    change(file, file, blur)  # 64 images teach no network to look at classes
    with chdir(at):
        made = run_examples("diffguide/sampling/README.md", {})
    done = command(sample, "checkpoint=outputs/train/digits/v001", "guidance=cfg", "guidance.scale=3", "n=10", at=at)
    assert done.code == 0, done.err
    with numpy.load(at / done.folder / "samples.npz") as arrays:
        assert made["images"].dtype == arrays["arr_0"].dtype == numpy.uint8
        assert made["images"].tobytes() == arrays["arr_0"].tobytes() and made["images"].shape == (10, 8, 8, 1)
    assert made["x"].abs().max() > 1  # which the example says, and bytes cannot be


def test_to_uint8_does_not_depend_on_the_dtype():
    """127.5 (x + 1) in float32, also where bfloat16 could not hold the product."""
    x = torch.linspace(-1.2, 1.2, 4 * 3 * 16).reshape(4, 3, 4, 4)
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        stored = x.to(dtype)
        expected = numpy.clip(numpy.round((stored.float().numpy() + 1) * numpy.float32(127.5)), 0, 255).astype(
            numpy.uint8
        )
        assert numpy.array_equal(diffguide.to_uint8(stored), expected.transpose(0, 2, 3, 1))
