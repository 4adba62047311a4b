"""A student by commands: trained, resumed bit for bit, sampled without its teacher, refused in one line."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from short_run import SMALL

from diffguide.sample import main as sample
from diffguide.train import main as train

SHORT = [
    "training.batch_size=32",
    "training.images=64",
    "training.checkpoint_images=32",
    "training.validation_images=64",
]
TEACHER = "objective.teacher=outputs/train/teacher/v001"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from contextlib import chdir

    place = tmp_path_factory.mktemp("students")
    with chdir(place):
        train([*SMALL, *SHORT, "name=teacher"])
        train([*SMALL, *SHORT, "objective=flow_map", TEACHER, "objective.scales=[1,3]", "name=jumps"])
        train([*SMALL, *SHORT, "training.images=32", "objective=guidance_distillation", TEACHER, "name=student"])
        few = ["objective=path_distillation", TEACHER, "objective.paths=4", "objective.solver.steps=4", "name=paths"]
        train([*SMALL, *SHORT, "training.images=32", *few])
    return place


def test_a_resumed_student_learns_from_the_same_teacher(folder, command):
    done = command(train, "resume=outputs/train/jumps/v001", "training.images=96", at=folder)
    assert done.code == 0 and "learns from outputs/train/teacher/v001" in done.err
    again = shutil.copytree(folder / "outputs/train/jumps/v001", folder / "outputs/train/again/v001")
    for file in (again / "checkpoints").glob("*96.*"):
        file.unlink()
    assert command(train, "resume=outputs/train/again/v001", "training.images=96", at=folder).code == 0
    one, other = (
        load_file(folder / f"outputs/train/{name}/v001/checkpoints/0000000096.safetensors")
        for name in ("jumps", "again")
    )
    assert all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())


def test_one_call_per_picture_without_the_teacher(folder, command):
    hidden = (folder / "outputs/train/teacher").rename(folder / "hidden")
    try:
        for name, words, calls in (
            ("jumps", ["sampler=jump"], 4),
            ("paths", ["sampler=jump", "sampler.steps=1"], 1),
            ("student", ["sampler=ddim", "sampler.steps=3"], 3),
        ):
            done = command(sample, f"checkpoint=outputs/train/{name}/v001", "guidance=distilled", "guidance.scale=2",
                           *words, "n=4", at=folder)  # fmt: skip
            assert done.code == 0, done.err
            header = (folder / done.folder / "manifest.jsonl").read_text().splitlines()[0]
            assert json.loads(header)["network_evaluations"] == calls
    finally:
        hidden.rename(folder / "outputs/train/teacher")


JUMPS = "objective.teacher=outputs/train/jumps/v001"
PLANE = [
    "dataset=gmm2d",
    "dataset.train=64",
    "dataset.validation=64",
    "backbone=mlp",
    "backbone.width=8",
    "backbone.layers=1",
]


def name_objective(words):
    return next(word for word in words if word.startswith("objective=")).partition("=")[2]


@pytest.mark.parametrize(
    "words",
    [
        [*PLANE, "objective=ict", "objective.jump.double_images=32"],
        [*PLANE, "objective=scm"],
        [*PLANE, "objective=improved_mean_flow"],
        [*PLANE, "objective=guidance_free"],
        [
            *SMALL,
            "objective=progressive",
            JUMPS,
            "guidance@objective.teacher_guidance=distilled",
            "objective.scales=[1,3]",
        ],
    ],
    ids=lambda words: name_objective(words),
)
def test_named_methods_train_and_load(folder, command, words):
    name = name_objective(words)
    done = command(train, *SHORT, *words, "sampler.steps=2", "p_uncond=0.1", f"name={name}", at=folder)
    assert done.code == 0, done.err
    weights = load_file(folder / f"outputs/train/{name}/v001/checkpoints/0000000064.safetensors")
    counted = [int(value) for key, value in weights.items() if key.endswith("jump.images")]
    assert all(count == 64 for count in counted) and bool(counted) == (name in ("ict", "scm"))


@pytest.mark.parametrize(
    "main, words, reason",
    [
        (sample, ["checkpoint=outputs/train/student/v001", "guidance=distilled", "guidance.scale=5"], "1 to 4"),
        (sample, ["checkpoint=outputs/train/teacher/v001", "guidance=distilled"], "take guidance=cfg"),
        (sample, ["checkpoint=outputs/train/teacher/v001", "sampler=jump", "guidance=none"], "a network that jumps"),
        (train, ["objective=guidance_distillation", "objective.teacher=nowhere"], "no checkpoint at nowhere"),
        (train, ["objective=guidance_distillation"], "objective.teacher"),
        (train, ["objective=guidance_distillation", TEACHER, "dataset=shapes"], "trained on examples of shape"),
        (train, ["objective=path_distillation", TEACHER, "objective.calls=[3]"], "does not divide the 8 steps"),
        (train, [*SMALL, "objective=progressive", JUMPS, "guidance@objective.teacher_guidance=distilled"], "1 to 3"),
        (train, ["objective=flow_map", "objective/jump=progressive"], "the round before"),
        (train, ["objective=flow_map", "backbone=edm_unet"], "backbone=unet, dit or mlp"),
    ],
)
def test_what_does_not_fit_is_one_line(folder, command, main, words, reason):
    done = command(main, *words, at=folder)
    assert done.code == 1 and reason in done.err and done.err.count("\n") == 1
