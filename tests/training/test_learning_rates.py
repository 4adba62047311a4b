"""The learning rate over a run and over an extended run, against its formulas."""

import json
import math
import shutil

import pytest
from short_run import RUN

from diffguide.checkpoints import store as checkpoints
from diffguide.checkpoints.validation import check_facts
from diffguide.files.safetensors import CheckpointError
from diffguide.train import main
from diffguide.training.learning_rates import EXTEND, Extension, LearningRatePlan

PLAN = LearningRatePlan(peak=0.004, warmup_images=3000, batch_size=128, length=60000)


def half_cosine(part: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * part))


@pytest.mark.parametrize("images", [0, 2816, 2944, 30080, 59904, 60032])
def test_the_rate_rises_in_the_warm_up_and_falls_as_a_cosine(images):
    expected = 0.004 * min(1, (images + 128) / 3000) * half_cosine(min(1, images / 60000))
    assert PLAN.rate_at(images) == pytest.approx(expected, rel=1e-12, abs=1e-18)


LONGER = {  # after 60,032 images of a run of 60,000, extended to 120,000
    "as_if_planned": lambda images: 0.004 * half_cosine(images / 120000),
    "constant": lambda images: 0.001,
    "decay_again": lambda images: 0.001 * half_cosine((images - 60032) / (120000 - 60032)),
}


@pytest.mark.parametrize("extend", EXTEND)
def test_a_longer_run_has_the_rate_of_its_formula(extend):
    plan = PLAN.extend_to(60032, 120000, extend, extend_rate=0.25)
    for images in (60032, 75008, 90112, 119936, 120000):
        assert plan.rate_at(images) == pytest.approx(LONGER[extend](images), rel=1e-12, abs=1e-18)


@pytest.mark.parametrize("extend", ["constant", "decay_again"])
def test_a_run_that_was_stopped_early_continues_with_its_rate(extend):
    """Also in the warm-up; and a second extension starts at the rate of the first one."""
    for images in (1024, 20096):
        plan = PLAN.extend_to(images, 120000, extend, extend_rate=0.25)
        assert plan.rate_at(images) == pytest.approx(PLAN.rate_at(images), rel=1e-12)
    again = plan.extend_to(30080, 200000, extend, extend_rate=0.25)
    first = 1.0 if extend == "constant" else half_cosine((30080 - 20096) / (120000 - 20096))
    assert again.rate_at(30080) == pytest.approx(0.004 * half_cosine(20096 / 60000) * first, rel=1e-12)
    ended = plan.extend_to(120064, 200000, extend, extend_rate=0.25)
    start = half_cosine(20096 / 60000) if extend == "constant" else 0.25
    assert ended.rate_at(120064) == pytest.approx(0.004 * start, rel=1e-12)


def rates(run) -> dict[int, float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["images"]: line["learning_rate"] for line in lines if "loss" in line}


def test_a_run_extended_twice_and_killed_is_bit_for_bit_the_same(short_run, tmp_path, command):
    """From 320 images to 480 and to 640; the other run is killed after a checkpoint of each extension."""
    for name in ("whole", "killed"):
        shutil.copytree(short_run, tmp_path / name / RUN)
    for length, kept in ((480, 320), (640, 576)):
        arguments = f"resume={RUN}", f"training.images={length}"
        whole = command(main, *arguments, at=tmp_path / "whole")
        assert whole.code == 0 and "training.extend=decay_again" in whole.err, whole.err
        command(main, *arguments, at=tmp_path / "killed")
        for file in (tmp_path / "killed" / RUN / "checkpoints").iterdir():
            if int(file.name[:10]) > kept:
                file.unlink()
        again = command(main, f"resume={RUN}", at=tmp_path / "killed")
        assert again.code == 0 and ("training.extend" in again.err) == (kept == 320), again.err
    runs = [tmp_path / name / RUN for name in ("whole", "killed")]
    last = "checkpoints/0000000640.safetensors"
    assert len({(run / last).read_bytes() for run in runs}) == 1 and rates(runs[0]) == rates(runs[1])
    for run in runs:
        notes = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if '"changed"' in line]
        assert [(note["images"], note["changed"]["training.images"]) for note in notes] == [
            (320, [320, 480]),
            (480, [480, 640]),
        ]
        for note, warm in zip(notes, (352 / 3000, 512 / 3000)):
            assert note["extend"] == "decay_again" and note["learning_rates"] == [0, pytest.approx(0.002 * warm)]
    state = checkpoints.read(runs[0] / last)[1]
    assert state["extension"] == {"images": 480, "extend": "decay_again", "start": 0.5}
    expected = 0.004 * (608 + 32) / 3000 * 0.5 * half_cosine((608 - 480) / 160)
    assert rates(runs[0])[640] == pytest.approx(expected, rel=1e-12)


def test_extend_without_another_length_is_an_error(unfinished, tmp_path, command):
    done = command(main, f"resume={RUN}", "training.extend=constant", at=tmp_path)
    assert done.code == 1 and "training.extend" in done.err and len(done.err.splitlines()) == 1, done.err


@pytest.mark.parametrize("extension", [
    3, {}, {"images": 1}, {"images": 9, "extend": "constant", "start": 0.5}, {"images": 1, "extend": "x", "start": 0.5},
    {"images": True, "extend": "constant", "start": 0.5}, {"images": 1, "extend": "constant", "start": 2},
    {"images": 1, "extend": ["constant"], "start": math.nan},
])  # fmt: skip
def test_an_invalid_extension_in_a_checkpoint_raises(extension):
    nodes = {part: {} for part in ("dataset", "backbone", "schedule", "objective")}
    facts = {"config": nodes | {"name": "x"}, "images": 8, "class_names": [], "shape": [2], "extension": extension}
    with pytest.raises(CheckpointError, match="extension"):
        check_facts(facts)
    check_facts(facts | {"extension": Extension(1, "constant", 0.5)._asdict()})
