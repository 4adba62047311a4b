"""Fixtures: the command lines in this process, and models that were trained once for the whole session."""

import gc
import os
import shutil
from contextlib import chdir
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from latent_run import AUTOENCODER, LATENT
from quick_composing import compose_quickly
from short_run import RUN, SHORT

os.environ.setdefault("MPLBACKEND", "agg")
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
torch.set_num_threads(1)  # for the session's models; see one_thread
compose_quickly()
gc.set_threshold(50_000)  # a tenth of the time of composing went into collecting its many small objects


def pytest_collection_modifyitems(items):
    """Files with heavy proofs begin first, so that the two workers end together."""
    heavy = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in heavy)


def pytest_collection_finish():
    """What was imported stays: a whole collection of garbage takes microseconds in place of 0.2 s."""
    gc.collect()
    gc.freeze()


class Finished(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def folder(self) -> Path:
        """The folder that the command named in its last line."""
        return Path(self.out.splitlines()[-1])


@pytest.fixture
def command(capfd):
    """command(main, "key=value", ..., at=folder) runs an entry point as its console script would, in this process."""

    def run(main, *arguments: str, at: Path) -> Finished:
        capfd.readouterr()
        code = 0
        with chdir(at):
            try:
                main(list(arguments))
            except SystemExit as left:
                code = int(left.code or 0)
        return Finished(code, *capfd.readouterr())

    return run


@pytest.fixture(autouse=True)
def one_thread():
    """Two workers of pytest-xdist share two cores; results are those of one thread each, whatever the machine has."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """A digits model of one second."""
    from diffguide.train import main

    folder = tmp_path_factory.mktemp("tiny")
    with chdir(folder):
        main(["backbone.multipliers=[1]", "backbone.attention=[]", "backbone.blocks=1", "backbone.channels=4",
              "training.images=64", "training.batch_size=32", "training.checkpoint_images=32", "sampler.steps=2"])  # fmt: skip
    return folder / "outputs/train/digits/v001"


@pytest.fixture
def at(tiny_run, tmp_path) -> Path:
    """A folder of the test's own with a copy of that model in outputs/train/digits/v001."""
    shutil.copytree(tiny_run, tmp_path / "outputs/train/digits/v001")
    return tmp_path


@pytest.fixture(scope="session")
def short_run(tmp_path_factory) -> Path:
    """A finished run of ten steps with checkpoints at 96, 192, 288 and 320 images, of which three and the best are kept."""
    from diffguide.train import main

    folder = tmp_path_factory.mktemp("short")
    with chdir(folder):
        main(SHORT)
    return folder / RUN


@pytest.fixture
def unfinished(short_run, tmp_path) -> Path:
    """A copy of it that lost its last checkpoint and has a torn line of metrics."""
    shutil.copytree(short_run, tmp_path / RUN)
    for file in (tmp_path / RUN / "checkpoints").glob("0000000320*"):
        file.unlink()
    with open(tmp_path / RUN / "metrics.jsonl", "a") as file:
        file.write('{"images": 31')
    return tmp_path / RUN


JEM = ["experiment=jem_digits", "backbone.channels=4", "backbone.width=16", "objective.steps=3", "objective.size=100",
       "sampler.steps=3", "training.batch_size=32", "training.images=320", "training.warmup_images=0",
       "training.checkpoint_images=96", "training.log_images=80", "training.validation_images=128"]  # fmt: skip


@pytest.fixture(scope="session")
def jem_run(tmp_path_factory) -> Path:
    """A joint energy model of ten steps, with checkpoints as the short run has them."""
    from diffguide.train import main

    folder = tmp_path_factory.mktemp("jem")
    with chdir(folder):
        main(JEM)
    return folder / "outputs/train/jem_digits/v001"


@pytest.fixture(scope="session")
def latent_home(tmp_path_factory) -> Path:
    """A folder with an autoencoder of 4 x 4 x 4 latents, and a model in them."""
    from diffguide.train import main

    folder = tmp_path_factory.mktemp("latent")
    with chdir(folder):
        main(AUTOENCODER)
        main(LATENT)
    return folder
