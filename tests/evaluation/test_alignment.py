"""Alignment: shares counted by hand on drawn pictures, diversity against probabilities, the metric on samples."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from captioned_stripes import NAMES, draw_stripes, striped

from diffguide.conditions import ByteText
from diffguide.datasets import Dataset, Digits, Shapes
from diffguide.datasets.base import Split
from diffguide.datasets.digits import CAPTIONS
from diffguide.datasets.shape_pictures import ATTRIBUTES, draw_pictures, place_objects
from diffguide.datasets.shapes import prompts
from diffguide.evaluation.metric import EvalContext
from diffguide.evaluation.quality.alignment import (
    chance_share,
    check_words,
    diversity_figures,
    judge_pictures,
    prompt_values,
    share_figures,
)
from diffguide.evaluation.quality.alignment_metric import Alignment
from diffguide.evaluation.quality.clip_score import clip_scores
from diffguide.evaluation.quality.dual_encoder import DualEncoder
from diffguide.evaluation.quality.image_sources import StoredSamples
from diffguide.evaluation.quality.prompted_samples import choose_prompts
from diffguide.figures.image_grids import quantize
from diffguide.guidance.potentials.clip import PretrainedClip
from diffguide.models.protocols import Denoiser, Prediction
from diffguide.samplers import DDIM
from diffguide.samplers.grids import UniformT
from diffguide.schedules import Cosine


@pytest.fixture(scope="module")
def data() -> Shapes:
    return Shapes(train=400, validation=10, test=60)


def first_captions(split, n: int) -> list[str]:
    return [texts[0] for texts in split.columns["captions"][:n]]


def test_drawn_pictures_have_their_captions(data):
    for split in (data.train, data.test):
        for k in range(4):
            judged = judge_pictures(split.x[:60], [texts[k] for texts in split.columns["captions"][:60]])
            assert judged.all_right.all() and judged.recognised.all()
    figures = share_figures(judged)
    assert figures["alignment"].value == 1 and figures["alignment"].n == 60 and figures["alignment"].unit == "share"


def test_shares_are_counted_per_attribute(data):
    """Half of the prompts ask for another colour and none for the size of a quarter."""
    texts = first_captions(data.train, 40)
    shown = judge_pictures(data.train.x[:40], texts).found
    asked = [
        text.replace(colour, "cyan" if colour != "cyan" else "red") if i % 2 else text
        for i, text in enumerate(texts)
        for colour in [("red", "green", "blue", "yellow", "purple", "cyan")[int(shown[i, 1])]]
    ]
    asked = [text.replace("small ", "").replace("large ", "") if i % 4 == 0 else text for i, text in enumerate(asked)]
    figures = share_figures(judge_pictures(data.train.x[:40], asked))
    assert figures["alignment"].value == 0.5 == figures["alignment_colour"].value
    assert figures["alignment"].standard_error == pytest.approx(math.sqrt(0.25 * 40 / 39 / 40))
    assert figures["alignment_size"].n == 30 and figures["alignment_size"].value == 1 == figures["recognised"].value


def test_prompts_are_divided_by_what_training_shows(data):
    x = torch.cat([data.train.x[:30], data.test.x[:20]])
    texts = first_captions(data.train, 30) + ["a red circle"] * 20
    figures = share_figures(judge_pictures(x, texts))
    assert "alignment_held_out" not in figures, "some red circles are shown"
    texts = first_captions(data.train, 30) + first_captions(data.test, 10) + ["green circles"] * 10
    figures = share_figures(judge_pictures(x, texts))
    assert (figures["alignment_seen"].value, figures["alignment_seen"].n) == (1, 30)
    right = sum(
        texts[0].replace("disc", "circle").find("green circle") >= 0 for texts in data.test.columns["captions"][10:20]
    )
    assert figures["alignment_held_out"].n == 20 and figures["alignment_held_out"].value == (10 + right) / 20


def test_chance_is_the_share_of_training_pictures_that_fit():
    """Counted on 6000 drawn pictures; 0 for combinations that are never shown."""
    many = Shapes(train=6000, validation=1, test=1, captions=1).train
    found = many.columns["attributes"]
    for text, columns in [("three red circles", (12 + 2, 4, 0)), ("small", (10,)), ("", ())]:
        expected = found[:, list(columns)].all(1).double().mean()
        assert chance_share(prompt_values([text])) == pytest.approx(float(expected), abs=4.5 * math.sqrt(0.25 / 6000))
    assert chance_share(prompt_values(["green circles", "three triangles"])) == 0
    assert chance_share(prompt_values(["small", "green circles"])) == chance_share(prompt_values(["small"])) / 2


def test_nothing_is_right_on_noise():
    x = torch.randint(256, (20, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    judged = judge_pictures(x, [text for text, _ in prompts("validation", n=20)])
    figures = share_figures(judged)
    assert figures["alignment"].value == 0 == figures["recognised"].value
    assert set(diversity_figures(x, judged)) == set()


def test_empty_prompts_are_not_counted(data):
    judged = judge_pictures(data.train.x[:4], ["", "", *first_captions(data.train, 4)[2:]])
    assert share_figures(judged)["alignment"].n == 2 and "alignment_seen" not in share_figures(judged)


def test_words_of_a_caption_are_checked_one_by_one(data):
    text = first_captions(data.train, 1)[0]
    found = judge_pictures(data.train.x[:1], [text]).found[0]
    assert all(right for _, right in check_words(found, text))
    count, size, colour = text.split()[:3]
    words = check_words(found, "three huge plum shapes")
    assert [phrase for phrase, _ in words] == ["three", "huge", "plum"]
    assert [right for _, right in words] == [count == "three", size == "large", colour == "purple"]


def test_diversity_of_the_data_is_one_and_of_copies_zero(data):
    """400 pictures of the data under the empty prompt: 1 within 4 %, but for the held-out combinations."""
    x, empty = data.train.x, [""] * 400
    drawn = diversity_figures(x, judge_pictures(x, empty))
    assert drawn["diversity"].value == pytest.approx(1, abs=0.04)
    pairs = torch.cdist(x[:60].flatten(1).double(), x[:60].flatten(1).double()).square() / 255**2 / 768
    expected = math.sqrt(float(pairs.sum()) / (60 * 59))
    some = diversity_figures(x[:60], judge_pictures(x[:60], empty[:60]))
    assert some["pixel_diversity"].value == pytest.approx(expected)
    copies = x[:1].repeat(5, 1, 1, 1)
    same = diversity_figures(copies, judge_pictures(copies, ["shapes"] * 5))
    assert same["diversity"].value == 0 == same["pixel_diversity"].value


def test_only_open_attributes_count_as_diversity(data):
    """Pictures that differ in size alone, with one prompt that says all but size and one that says all."""
    rows = np.array([[0, 0, size, 0, 0, 4] for size in (0, 1, 0, 1)])
    x = torch.from_numpy(draw_pictures(rows, place_objects(rows, np.full((4, 4, 2), 0.5)), 16))
    open_size = diversity_figures(x, judge_pictures(x, ["a red circle in the middle on white"] * 4))
    assert open_size["diversity"].value == pytest.approx((4 / 6) / (1 / 2))
    told = diversity_figures(x, judge_pictures(x, ["a small red circle in the middle on white"] * 4))
    assert "diversity" not in told and told["pixel_diversity"].value == open_size["pixel_diversity"].value > 0
    assert diversity_figures(x[:2], judge_pictures(x[:2], ["red", "a circle"])) == {}


def test_other_prompts_are_refused(data):
    with pytest.raises(ValueError, match="2 pictures and 1 prompts"):
        judge_pictures(data.train.x[:2], ["red"])
    with pytest.raises(ValueError, match="'horse'"):
        judge_pictures(data.train.x[:1], ["a horse"])


def write_samples(folder, x: torch.Tensor, texts: list[str | None]) -> None:
    np.savez(folder / "samples.npz", x.permute(0, 2, 3, 1).numpy(), np.arange(len(x)))
    rows = [
        {"guidance": "none"},
        *({"index": i} | ({} if text is None else {"prompt": text}) for i, text in enumerate(texts)),
    ]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_metric_measures_stored_samples(data, tmp_path):
    context = EvalContext(SimpleNamespace(num_classes=0), data, "validation", batch_size=7)
    texts = first_captions(data.train, 20)
    texts[3] = "three red crosses in the middle on black"
    write_samples(tmp_path, data.train.x[:20], texts)
    metric = Alignment(samples=str(tmp_path))
    metric.check(context)
    result = metric.measure(context)
    judged = judge_pictures(data.train.x[:20], texts)
    assert result.figures["alignment"].value == judged.all_right.double().mean() and result.facts["samples"] == 20
    assert np.array_equal(result.arrays["attributes"]["found"], judged.found.numpy())
    assert Alignment(samples=str(tmp_path), count=5).measure(context).figures["alignment"].n == 5


def test_labels_of_prompts_are_no_classes(data, tmp_path):
    """The archive numbers the prompts, which are no classes for metric=quality either; "" = without prompt."""
    context = EvalContext(SimpleNamespace(num_classes=0), data)
    write_samples(tmp_path, data.train.x[:6], ["red", None, "red", "blue", "red", "red"])
    source = StoredSamples(tmp_path, 5, context)
    assert source.y.tolist() == [-1] * 5 and source.prompts == ["red", "", "red", "blue", "red"]
    write_samples(tmp_path, data.train.x[:3], [None] * 3)
    assert StoredSamples(tmp_path, None, context).y.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "texts, changes, message",
    [
        (["red"] * 4, {"samples": None}, "metric=alignment needs a denoiser"),
        ([""] * 4, {}, "empty prompts alone"),
        ([None] * 4, {}, "without prompts"),
        (["red"] * 3, {}, "4 samples and 3 prompts"),
        (["a dog"] * 4, {}, "'dog'"),
        ([3] * 4, {}, "not a finished run"),
        (["red"] * 4, {"count": 5}, "fewer than metric.count=5"),
    ],
)
def test_folders_without_fitting_prompts_are_refused(data, tmp_path, texts, changes, message):
    write_samples(tmp_path, data.train.x[:4], texts)
    context = EvalContext(SimpleNamespace(num_classes=0), data)
    with pytest.raises(ValueError, match=message) as raised:
        Alignment(**{"samples": str(tmp_path)} | changes).check(context)
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="metric.count"):
        Alignment(count=0)


def test_other_data_are_refused(tmp_path):
    plain = Dataset(*[Split(torch.zeros(3, 3, 16, 16), torch.zeros(3, dtype=torch.long))] * 3, ("one",))
    with pytest.raises(ValueError, match="metric=alignment needs data with captions"):
        Alignment(samples=str(tmp_path)).check(EvalContext(SimpleNamespace(num_classes=0), plain))
    with pytest.raises(ValueError, match="metric.candidates"):
        Alignment(candidates=1)


class Painter(Denoiser):
    """Knows the picture of every text: x_0 is that of its prompt, or a grey one.

    Arguments:
        pictures: text -> bytes [C, H, W].
    """

    has_null, conditional = True, True

    def __init__(self, pictures):
        self.schedule, self.conditioning = Cosine(), ByteText(64, 8, 1, 2)
        self.pictures = {text: x.float() / 127.5 - 1 for text, x in pictures.items()}
        self.shape = next(iter(pictures.values())).shape

    def __call__(self, x_t, t, y=None):
        texts = (
            [bytes(int(i) - 1 for i in row if 0 < i < 257).decode() for row in y.ids]
            if y is not None
            else [""] * len(x_t)
        )
        x_0 = torch.stack([self.pictures.get(text, torch.zeros(self.shape)) for text in texts]).to(x_t)
        alpha, sigma = (part.to(x_t) for part in self.schedule.alpha_sigma(t))
        return Prediction(x_0, (x_t - alpha * x_0) / sigma)


def paint_shapes(n: int) -> dict[str, torch.Tensor]:
    """The pictures that the first prompts of both kinds ask for."""
    found = [pair for split in ("validation", "test") for pair in prompts(split, 3, n)]
    rows = np.array([[values.index(said[name]) for name, values in ATTRIBUTES.items()] for _, said in found])
    drawn = draw_pictures(rows, place_objects(rows, np.full((len(rows), 4, 2), 0.5)), 16)
    return dict(zip([text for text, _ in found], torch.from_numpy(drawn)))


def test_new_samples_of_shapes_have_prompts_of_seen_and_unseen_combinations(data):
    context = EvalContext(Painter(paint_shapes(15)), data, batch_size=8, seed=3)
    metric = Alignment(sampler=DDIM(2, UniformT(), eta=0.0), count=30)
    metric.check(context)
    result = metric.measure(context)
    shares = {name: result.figures[name] for name in ("alignment", "alignment_seen", "alignment_held_out")}
    assert [(figure.value, figure.n) for figure in shares.values()] == [(1, 30), (1, 15), (1, 15)]
    assert result.facts["sampled"] == "here" and result.facts["labels"] == "prompts of the data"
    some = Alignment(sampler=DDIM(2, UniformT(), eta=0.0), count=7).measure(context)
    assert np.array_equal(some.arrays["attributes"]["asked"], result.arrays["attributes"]["asked"][:7])
    unknown = EvalContext(Painter(paint_shapes(5)), data, seed=3)  # it paints a third of them
    assert metric.measure(unknown).figures["alignment"].value == 10 / 30


def test_new_samples_of_captions_are_recalled_like_real_pictures(tmp_path):
    """A dual encoder finds the texts of painted pictures; it does not where each text has the picture of the other."""
    held_out = draw_stripes(40, 1)
    captioned, sampler, encoder = (
        striped(draw_stripes(200, 0)),
        DDIM(2, UniformT(), eta=0.0),
        DualEncoder(20, 0, str(tmp_path)),
    )
    pictures = [held_out.x[held_out.y.tolist().index(kind)] for kind in (0, 1)]
    found = []
    for kinds in ((0, 1), (1, 0)):
        painter = Painter({NAMES[kind][0]: pictures[other] for kind, other in enumerate(kinds)})
        context = EvalContext(painter, captioned, n=30, batch_size=13)
        metric = Alignment(sampler=sampler, encoder=encoder, count=45, candidates=2)
        metric.check(context)
        found.append(metric.measure(context))
    right, wrong = (result.figures for result in found)
    assert right["recall_at_1"].value == 1 and right["recall_at_1"].n == 45
    assert right["recall_at_1_real"].n == 30  # each held-out picture once, though half of them have two samples
    assert wrong["recall_at_1"].value == 0 and wrong["recall_at_1_real"].value == right["recall_at_1_real"].value > 0.9
    assert right["recall_at_1_chance"].value == 0.5
    assert found[0].facts["candidates"] == 2 and found[0].facts["encoder"]["steps"] == 20
    assert Alignment(sampler=sampler, encoder=encoder, count=4).measure(context).facts["candidates"] == 3


def test_prompts_are_first_captions_and_each_example_comes_once_in_a_round():
    captioned = striped(draw_stripes(4, 0))
    captioned.validation.columns["captions"][3] = ["", "above"]  # its condition is that of no text
    context = EvalContext(SimpleNamespace(num_classes=0), captioned)
    texts, rows = choose_prompts(context, 78)
    assert sorted(rows[:39].tolist()) == [row for row in range(40) if row != 3] == sorted(rows[39:].tolist())
    assert texts == [captioned.validation.columns["captions"][row][0] for row in rows.tolist()]
    assert not torch.equal(choose_prompts(EvalContext(context.model, captioned, seed=1), 78).rows, rows)


def test_stored_samples_of_captions_are_recalled(tmp_path):
    """The prompts of a folder; those without a prompt are left out, and fewer texts that say something else are enough."""
    digits = Digits()
    context = EvalContext(SimpleNamespace(num_classes=0), digits)
    x = quantize(digits.validation.x[:6])
    texts = [CAPTIONS[label][1] for label in digits.validation.y[:6].tolist()]
    write_samples(tmp_path, x, [*texts[:5], None])
    metric = Alignment(samples=str(tmp_path), encoder=DualEncoder(1, 0, None))
    metric.check(context)
    result = metric.measure(context)
    assert result.figures["recall_at_1"].n == 5 and result.facts["candidates"] == 28
    assert result.figures["recall_at_1_chance"].value == 1 / 28


def test_the_clip_score_is_that_of_the_samples_and_their_prompts(data, tmp_path):
    pytest.importorskip("transformers")
    from clip_models import write_clip

    folder = write_clip(tmp_path)
    write_samples(tmp_path, data.train.x[:6], [*first_captions(data.train, 5), ""])
    context = EvalContext(SimpleNamespace(num_classes=0), data)
    metric = Alignment(samples=str(tmp_path), clip=str(folder))
    metric.check(context)
    result = metric.measure(context)
    expected = clip_scores(PretrainedClip(str(folder)), data.train.x[:5], first_captions(data.train, 5)).double()
    assert result.figures["clip_score"].value == pytest.approx(float(expected.mean()))
    assert result.figures["clip_score"].n == 5 and result.facts["clip"] == str(folder)
    with pytest.raises(ValueError, match="metric.clip: there is no CLIP model"):
        Alignment(samples=str(tmp_path), clip=str(tmp_path / "nothing")).check(context)


def test_models_without_texts_draw_no_samples_with_prompts(data):
    painter = Painter(paint_shapes(1))
    painter.conditioning = None
    with pytest.raises(
        ValueError, match="this model takes no texts: .*condition=text, or metric.samples=.*metric=quality"
    ):
        Alignment().check(EvalContext(painter, data))
    with pytest.raises(ValueError, match="needs captions on which no model was trained, got split=train"):
        Alignment().check(EvalContext(painter, striped(draw_stripes(4, 0)), split="train"))
