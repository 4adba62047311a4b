"""The README's example from Python: it runs as it stands, and makes the bytes of the command."""

import re
from contextlib import chdir
from pathlib import Path

import numpy
import torch
from small_checkpoint import change

import diffguide
from diffguide.checkpoints.store import find
from diffguide.sample import main as sample

README = Path(__file__).parents[2] / "README.md"


def blur(tensors: dict, metadata: dict) -> None:
    """Weights that answer to everything."""
    rng = torch.Generator().manual_seed(0)
    for name, value in tensors.items():
        tensors[name] = value + 0.3 * torch.randn(value.shape, generator=rng) if value.is_floating_point() else value


def test_the_example_makes_what_the_command_writes(at, command):
    file = find(at / "outputs/train/digits/v001")
    change(file, file, blur)  # 64 images teach no network to look at classes
    example = re.search(r"## From Python\n+```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[1]
    made: dict = {}
    with chdir(at):
        exec(example, made)
    done = command(sample, "checkpoint=outputs/train/digits/v001", "guidance=cfg", "guidance.scale=3", "n=10", at=at)
    assert done.code == 0, done.err
    with numpy.load(at / done.folder / "samples.npz") as arrays:
        assert made["images"].dtype == arrays["arr_0"].dtype == numpy.uint8
        assert made["images"].tobytes() == arrays["arr_0"].tobytes() and made["images"].shape == (10, 8, 8, 1)
    assert made["x"].abs().max() > 1  # which the example says, and bytes cannot be


def test_bytes_do_not_depend_on_the_type_of_the_images():
    """127.5 (x + 1) in float32, also where bfloat16 could not hold the product."""
    x = torch.linspace(-1.2, 1.2, 4 * 3 * 16).reshape(4, 3, 4, 4)
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        stored = x.to(dtype)
        expected = numpy.clip(numpy.round((stored.float().numpy() + 1) * numpy.float32(127.5)), 0, 255).astype(
            numpy.uint8
        )
        assert numpy.array_equal(diffguide.to_uint8(stored), expected.transpose(0, 2, 3, 1))
