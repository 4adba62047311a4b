"""trajectory.gif and single images have the pixels of the grid."""

from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image, ImageSequence

from diffguide.figures.image_grids import lay_out_grid, write_grid
from diffguide.figures.trajectories import TrajectoryRecorder, choose_trajectories, write_image_gif
from diffguide.sample import main
from diffguide.schedules import EDM, Cosine

MODEL = "checkpoint=outputs/train/digits/v001"
DIGITS = [str(k) for k in range(10)]


def frames(path: Path) -> list[numpy.ndarray]:
    with Image.open(path) as film:
        return [numpy.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(film)]


@pytest.mark.parametrize("labels, n", [("balanced", 30), ("all", 23), ("null", 11), ("[3,1]", 9)])
def test_the_gif_ends_with_the_grid(at, command, labels, n):
    done = command(
        main,
        MODEL,
        f"n={n}",
        "batch_size=7",
        f"labels={labels}",
        "sampler=euler",
        "sampler.steps=5",
        "trajectory=true",
        at=at,
    )
    assert done.code == 0, done.err
    shown, grid = frames(at / done.folder / "trajectory.gif"), Image.open(at / done.folder / "grid.png").convert("RGB")
    assert len(shown) == 5 and {frame.shape for frame in shown} == {(grid.size[1], grid.size[0], 3)}
    assert numpy.array_equal(shown[-1], numpy.asarray(grid))
    assert (shown[0] != shown[-1]).mean() > 0.1
    with Image.open(at / done.folder / "trajectory.gif") as film:
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(film)]
        assert durations[-1] >= 10 * durations[0] and film.info["loop"] == 0


def test_a_gif_of_many_samples_shows_the_first_of_each_class():
    assert choose_trajectories([k % 10 for k in range(50000)], DIGITS, (1, 8, 8)).indices == [
        10 * k + digit for digit in range(10) for k in range(8)
    ]
    by_class = choose_trajectories([k // 5000 for k in range(50000)], DIGITS, (1, 8, 8))
    assert [row[0] for row in by_class.rows] == [5000 * k for k in range(10)] and len(by_class.indices) == 80
    assert len(choose_trajectories([0] * 20 + [1] * 60, DIGITS, (3, 256, 256)).indices) == 16  # few large images
    assert len(choose_trajectories([0] * 5, DIGITS, (3, 4096, 4096)).indices) == 1
    assert choose_trajectories([0, 1] * 5000, DIGITS, (2,)).indices == list(range(2000))


@pytest.mark.parametrize("schedule", [Cosine(12.0, -12.0), EDM(9.0, -9.0)], ids=["vp", "ve"])
def test_noise_has_variance_one_in_every_frame(schedule):
    """For data and noise of variance 1 every frame has variance 1, also of VE at sigma 90."""
    times = torch.linspace(1, 0, 8, dtype=torch.float64)
    film, generator = TrajectoryRecorder(range(4000), times, schedule, numpy.eye(2)), torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, 4000, 2, generator=generator, dtype=torch.float64)
    film.start(0, 4000)
    for step, t in enumerate(times[1:], start=1):
        alpha, sigma = schedule.alpha_sigma(t)
        film.on_step(step, alpha * x_0 + sigma * eps)
    deviations = film.stack_frames().std(axis=(1, 2))
    assert deviations == pytest.approx(numpy.ones(7), abs=0.03)


def test_frames_are_evenly_spaced_and_include_the_last_step():
    film = TrajectoryRecorder([3, 12], torch.linspace(1, 0, 1001, dtype=torch.float64), EDM(9.0, -9.0), numpy.eye(2))
    film.start(10, 5)
    for step in range(1, 1001):
        film.on_step(step, torch.full((5, 2), float(step)))
    taken = film.stack_frames()
    assert taken.shape == (60, 1, 2) and taken[-1, 0, 0] == 1000
    film.start(5, 5)  # a batch without recorded samples
    film.on_step(1000, torch.zeros(5, 2))
    assert film.stack_frames() is None


def test_grey_levels_are_exact_in_frames_that_lack_some(tmp_path):
    """Pillow's optimised palettes would change them."""
    pictures = numpy.random.default_rng(0).integers(0, 100, (6, 3, 8, 8, 1)).astype(numpy.uint8) * 2
    pictures[:, 0] = 0
    shown = lay_out_grid([0, 1, 2] * 2, DIGITS)
    write_image_gif(tmp_path / "film.gif", shown, dict(enumerate(pictures)))
    for k, frame in enumerate(frames(tmp_path / "film.gif")):
        write_grid(tmp_path / "grid.png", shown, pictures[:, k])
        assert numpy.array_equal(frame, numpy.asarray(Image.open(tmp_path / "grid.png").convert("RGB")))


def test_colours_of_a_gif_are_within_16_levels(tmp_path):
    ramp = numpy.linspace(0, 255, 64).astype(numpy.uint8).reshape(8, 8)
    picture = numpy.stack([ramp, ramp.T, numpy.full_like(ramp, 90)], axis=-1)
    pictures = numpy.stack([numpy.stack([255 - picture, picture])] * 2)
    shown = lay_out_grid([-1, -1], [])
    write_image_gif(tmp_path / "film.gif", shown, dict(enumerate(pictures)))
    write_grid(tmp_path / "grid.png", shown, pictures[:, 1])
    grid = numpy.asarray(Image.open(tmp_path / "grid.png").convert("RGB")).astype(int)
    assert numpy.abs(frames(tmp_path / "film.gif")[-1] - grid).max() < 16


def test_single_images_have_the_pixels_of_the_archive(at, command):
    done = command(main, MODEL, "n=10", "batch_size=4", "seed=5", "sampler.steps=2", "png=true", at=at)
    assert done.code == 0, done.err
    with numpy.load(at / done.folder / "samples.npz") as arrays:
        x = arrays["arr_0"]
    paths = sorted((at / done.folder / "images").iterdir())
    assert [path.name for path in paths] == [f"{k:06d}.png" for k in range(10)]
    for path, pixels in zip(paths, x):
        picture = Image.open(path)
        assert picture.mode == "L" and numpy.array_equal(numpy.asarray(picture), pixels[..., 0])


def test_vectors_move_between_fixed_axes(tmp_path, command):
    from diffguide.train import main as train

    tiny = ["experiment=gmm2d", "guidance=none", "training.images=2048", "training.batch_size=1024", "sampler.steps=1"]
    assert command(train, *tiny, at=tmp_path).code == 0
    done = command(
        main,
        "checkpoint=outputs/train/gmm2d/v001",
        "n=60",
        "batch_size=25",
        "sampler=euler",
        "sampler.steps=4",
        "trajectory=true",
        at=tmp_path,
    )
    assert done.code == 0, done.err
    shown = frames(tmp_path / done.folder / "trajectory.gif")
    assert len(shown) == 4 and len({frame.shape for frame in shown}) == 1
    changed = numpy.stack(shown).std(axis=0).max(axis=-1) > 0
    assert 50 < changed.sum() < 0.1 * changed.size  # points, not axes
