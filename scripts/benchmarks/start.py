"""Start-up: the time of commands from Enter to their end, over that of `import torch`."""

import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from .clocks import alternate, median_ratio
from .rows import PEERS, Row, Session, missing_peers

PART = "start"
BASE = "import torch"
SCRIPTS = Path(sysconfig.get_path("scripts"))
PEER_IMPORTS = {
    "diffusers": "from diffusers import UNet2DModel, DPMSolverMultistepScheduler",
    "denoising-diffusion-pytorch": "import denoising_diffusion_pytorch",
    "azula": "import azula.sample, azula.nn.unet",
    "k-diffusion": "import k_diffusion.sampling",
}
BARS = {
    "diffguide-train --help": "at most 0.6 s",
    "import of the engine": "at most 1.05",
    "diffguide.load": "at most 1.05",
    "Enter to first training step": "at most 2.0",
    "Enter to grid of 64 images": "at most 2.2",
}
ONE_STEP = ("training.images=128", "training.sample_images=128", "sampler.steps=1")


class CommandClock:
    """clock(command) -> seconds: CPU seconds of the process on a CPU, else seconds from start to end."""

    def __init__(self, folder: Path, on_cpu: bool):
        self.folder, self.on_cpu = folder, on_cpu

    def __call__(self, command: Sequence[str]) -> float:
        before, started = os.times(), time.perf_counter()
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        if done.returncode:
            last = done.stderr.strip().rpartition("\n")[2]
            raise RuntimeError(f"{' '.join(command)} failed: {last}")
        elapsed, after = time.perf_counter() - started, os.times()
        own = after.children_user + after.children_system - before.children_user - before.children_system
        return own if self.on_cpu else elapsed


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def write_commands(folder: Path, accelerator: str) -> dict[str, list[str]]:
    """The commands by name; trains the checkpoint that two of them load."""
    engine = f"engine.accelerator={accelerator}"
    train = [str(SCRIPTS / "diffguide-train"), "name=start", engine, *ONE_STEP]
    subprocess.run(train, cwd=folder, check=True, capture_output=True)
    run = "outputs/train/start/v001"
    return {
        BASE: python("import torch"),
        "import diffguide": python("import diffguide"),
        "diffguide-train --help": [str(SCRIPTS / "diffguide-train"), "--help"],
        "import of the engine": python("import diffguide.runtime.engine"),
        "diffguide.load": python(f"import diffguide; diffguide.load({run!r})"),
        "Enter to first training step": train,
        "Enter to grid of 64 images": [str(SCRIPTS / "diffguide-sample"), f"checkpoint={run}", "n=64", engine],
    }


def measure_start(session: Session) -> Iterator[Row]:
    """Each command and each peer's import in alternating rounds, at most three counted ones."""
    folder = Path(tempfile.mkdtemp())
    try:
        on_cpu = session.device.type == "cpu"
        commands = write_commands(folder, session.device.type)
        broken: dict[str, str] = dict.fromkeys(missing_peers(), "not installed")
        clock = CommandClock(folder, on_cpu)
        for package in PEERS:
            if package not in broken:
                try:
                    clock(python(PEER_IMPORTS[package]))
                    commands[package] = python(PEER_IMPORTS[package])
                except RuntimeError as error:
                    broken[package] = str(error)
        seconds = alternate(commands, clock, min(session.rounds, 3))
    finally:
        shutil.rmtree(folder)
    case = "CPU s" if on_cpu else "s from Enter"
    for what, spent in seconds.items():
        median = statistics.median(spent)
        named = PEER_IMPORTS.get(what, what)
        yield Row(
            PART,
            case,
            named,
            f"{median:.2f} s",
            median_ratio(seconds, what, BASE),
            BASE,
            BARS.get(what, ""),
            {"seconds": median},
        )
    yield from (Row(PART, case, PEER_IMPORTS[package], reason) for package, reason in broken.items())
