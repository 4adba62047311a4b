"""Networks of other programs: sampling over bare calls and diffusers' own pipeline, memory of loading and converting."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from diffguide.backbones.dit import position_encoding
from diffguide.guidance import ClassifierFree
from diffguide.samplers import DDIM, generate

from .clocks import Work, alternate, median_ratio
from .rows import Row, Session, why_unavailable

PART = "imported"
SIDE, BATCH, STEPS = 32, 16, 10
WIDTHS = [64, 128, 128]
LARGE = [320, 640, 640]  # a file of 400 MB
LOAD = """
import sys
import diffguide

def read(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))

diffguide.load(sys.argv[1])  # imports what a load imports
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = read("VmRSS")
diffguide.load(sys.argv[2])
print(read("VmHWM") - before)
"""

CONVERT = """
import sys
from diffguide.convert import main

def read(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))

small, large, target = sys.argv[1:]
main([small, f"{target}/small", "architecture=dit", "architecture.heads=4"])  # imports what a conversion imports
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = read("VmRSS")
main([large, f"{target}/large", "architecture=dit"])
print(read("VmHWM") - before)
"""


def create_folder(folder: Path, widths: list[int]) -> Path:
    """A conditional UNet2DModel with random weights, whose eleventh class is none, as a pipeline of diffusers."""
    import diffusers

    torch.manual_seed(0)
    down = ["DownBlock2D", *["AttnDownBlock2D"] * (len(widths) - 1)]
    up = [*["AttnUpBlock2D"] * (len(widths) - 1), "UpBlock2D"]
    network = diffusers.UNet2DModel(
        sample_size=SIDE,
        block_out_channels=widths,
        down_block_types=down,
        up_block_types=up,
        num_class_embeds=11,
        attention_head_dim=32,
    )
    diffusers.DDIMPipeline(network, diffusers.DDIMScheduler(clip_sample=False)).save_pretrained(folder)
    return folder


def create_dit_file(path: Path, width: int, depth: int) -> Path:
    """Random weights with the published names of DiT."""
    layers = {"t_embedder.mlp.0": (width, 256), "t_embedder.mlp.2": (width, width)}
    layers |= {"final_layer.linear": (32, width), "final_layer.adaLN_modulation.1": (2 * width, width)}
    layers["x_embedder.proj"] = (width, 4, 2, 2)
    for number in range(depth):
        sizes = {"attn.qkv": 3, "attn.proj": 1, "mlp.fc1": 4, "adaLN_modulation.1": 6}
        layers |= {f"blocks.{number}.{name}": (size * width, width) for name, size in sizes.items()}
        layers[f"blocks.{number}.mlp.fc2"] = (width, 4 * width)
    state = {f"{name}.weight": torch.randn(shape) for name, shape in layers.items()}
    state |= {f"{name}.bias": torch.zeros(shape[0]) for name, shape in layers.items()}
    state["pos_embed"] = position_encoding(16, width)[None]
    state["y_embedder.embedding_table.weight"] = torch.randn(1001, width)
    torch.save(state, path)
    return path


def build_runs(folder: Path, device: torch.device) -> dict[str, Work]:
    """Guided sampling here, in a loop with the library's scheduler as its pipelines have, and bare calls."""
    import diffusers

    import diffguide

    model = diffguide.load(folder, device=device, null_class=10)
    network, guided, sampler = model.backbone.network, ClassifierFree(model, 2.0), DDIM(STEPS)
    labels = [index % 10 for index in range(BATCH)]
    both = torch.tensor(labels + [10] * BATCH, device=device)
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder / "scheduler")
    shape = (BATCH, 3, SIDE, SIDE)
    x = torch.randn(2 * BATCH, 3, SIDE, SIDE, device=device)

    def own() -> None:
        list(generate(guided, sampler, range(BATCH), labels, shape[1:], BATCH, device))

    @torch.no_grad()
    def pipeline() -> None:
        scheduler.set_timesteps(STEPS, device=device)
        z = torch.randn(shape, device=device)
        for step in scheduler.timesteps:
            stacked = scheduler.scale_model_input(torch.cat([z, z]), step)
            strong, weak = network(stacked, step, class_labels=both).sample.chunk(2)
            z = scheduler.step(weak + 2.0 * (strong - weak), step, z).prev_sample

    @torch.no_grad()
    def bare() -> None:
        for _ in range(STEPS):
            network(x, 500, class_labels=both)

    return {"diffguide": own, "bare calls": bare, "diffusers": pipeline}


def measure_imported(session: Session) -> Iterator[Row]:
    """Sampling in `STEPS` steps with classifier-free guidance, and the memory of loading."""
    case = f"UNet2DModel {SIDE}x{SIDE}, ddim {STEPS}, cfg, {BATCH} images"
    if reason := why_unavailable("diffusers"):
        yield Row(PART, case, "diffusers", reason)
        return
    with tempfile.TemporaryDirectory() as place:
        small = create_folder(Path(place) / "small", WIDTHS)
        seconds = alternate(build_runs(small, session.device), session.clock, session.rounds)
        for base, bar in (("bare calls", "at most 1.03"), ("diffusers", "at most 0.97")):
            ratio = median_ratio(seconds, "diffguide", base)
            spent = sorted(seconds["diffguide"])[len(seconds["diffguide"]) // 2]
            yield Row(PART, case, "diffguide", f"{spent:.3f} s a run", ratio, base, bar, {"seconds_per_run": spent})
        yield measure_memory(Path(place), small)
        yield measure_conversion(Path(place))


def measure_memory(place: Path, small: Path) -> Row:
    """The peak of the resident memory of a load over the size of the file, in a process of its own (Linux)."""
    large = place / "large" if (place / "large").exists() else create_folder(place / "large", LARGE)
    size = (large / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    words = [sys.executable, "-c", LOAD, str(small), str(large)]
    peak = 1024 * int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    figures = {"file_bytes": size, "peak_bytes": peak}
    text = f"{peak / 2**20:.0f} MB for a file of {size / 2**20:.0f} MB"
    return Row(PART, "diffguide.load of a folder", "peak memory", text, peak / size, "the file", "at most 1.1", figures)


def measure_conversion(place: Path) -> Row:
    """The peak of the resident memory of a conversion over the size of the file (Linux)."""
    small, large = create_dit_file(place / "small.pt", 64, 1), create_dit_file(place / "large.pt", 768, 12)
    words = [sys.executable, "-c", CONVERT, str(small), str(large), str(place)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    size, peak = large.stat().st_size, 1024 * int(done.stdout.split()[-1])
    figures = {"file_bytes": size, "peak_bytes": peak}
    text = f"{peak / 2**20:.0f} MB for a file of {size / 2**20:.0f} MB, which stays mapped; what it writes included"
    return Row(
        PART, "diffguide-convert of DiT-B/2", "peak memory", text, peak / size, "the file", "at most 1.1", figures
    )
