"""Values as classes: a name, an index, or neither."""

import json

import numpy
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from small_checkpoint import save

import diffguide
from diffguide.class_names import class_index, class_indices, explain_shadowed_class, resolve_labels
from diffguide.config.quoting import quote_odd
from diffguide.guidance.composition import ClassComposition, NegativeCondition
from diffguide.sample import main as sample
from diffguide.train import main as train

TWELVE = sorted(map(str, range(1, 13)))  # 1, 10, 11, 12, 2, ...: folders 1 to 12 in alphabetical order
NAMES = ["true", "on", "null", "None", "1e3", "007", "1_000", "0x10", ".5", "2024-01-01", "-5", "nan", "12:30", "üml"]


def ambiguous(label, names, *ways: str) -> None:
    with pytest.raises(ValueError) as raised:
        class_index(label, names, several=True)
    assert "\n" not in str(raised.value) and all(way in str(raised.value) for way in ways), raised.value


def test_names_that_are_their_own_indices_are_unambiguous():
    names = list("0123456789")
    assert [class_index(k, names) for k in range(10)] == [class_index(str(k), names) for k in range(10)] == [*range(10)]


def test_an_ambiguous_number_is_refused_with_both_classes():
    ambiguous(10, TWELVE, "labels=['10']", "index 1;", "labels.index=[10]", "class '8'")
    assert class_index("10", TWELVE) == 1 and class_index({"index": 10}, TWELVE) == 10
    assert class_index(12, TWELVE) == 3 and class_index(0, TWELVE) == 0  # 12 is a name only, 0 an index only
    ordered = [str(k) for k in range(1, 13)]
    ambiguous(1, ordered, "labels=['1']", "labels.index=[1]", "class '2'")
    padded = [f"{k:03}" for k in range(1, 13)]
    ambiguous(8, padded, "labels=['008']", "labels=['010']", "labels.index=[8]")  # YAML reads 010 as 8
    assert class_index(11, [f"{k:03}" for k in range(12)]) == 11


@pytest.mark.parametrize("name", NAMES)
def test_an_unquoted_name_means_its_class_on_the_command_line_and_in_yaml(name):
    names = ["cat", name, "dog"]
    (typed,) = quote_odd([f"labels=[{name}]"])
    (on_the_command_line,) = OverridesParser.create().parse_override(typed).value()
    if not hasattr(on_the_command_line, "text"):
        assert class_index(on_the_command_line, names) == 1
    (in_yaml,) = OmegaConf.to_container(OmegaConf.create(f"[{name}]"))
    assert class_index(in_yaml, names) == 1
    assert class_index(name, names) == 1
    if not isinstance(in_yaml, str):
        with pytest.raises(ValueError, match="there is no class"):
            class_index(in_yaml, ["cat", "dog"])


def test_quotes_distinguish_names_that_parse_alike():
    ambiguous(True, ["true", "on", "cat"], "labels=['true']", "labels=['on']")
    assert class_index("on", ["true", "on", "cat"]) == 1
    ambiguous("crane", ["crane", "cat", "crane"], "labels.index=[0]", "labels.index=[2]")


def test_keywords_of_labels_are_no_class_names():
    names = ["all", "balanced", "null"]
    assert resolve_labels(None, 2, names) is None and resolve_labels("balanced", 3, names) == [0, 1, 2]
    assert resolve_labels(["balanced"], 1, names) == [1] and resolve_labels(["null"], 1, names) == [2]
    assert resolve_labels([None], 1, names) == [2]
    for label, word in {None: "null", "all": "all", "balanced": "balanced"}.items():
        assert f"labels=['{word}']" in explain_shadowed_class(label, names)
        assert explain_shadowed_class(label, ["cat"]) is None
    assert explain_shadowed_class(["all"], names) is None and explain_shadowed_class(3, names) is None


@pytest.mark.parametrize(
    "label", [-1, 3, "3", "1", "ca", True, 1.0, None, {"index": 3}, {"index": True}, {"indx": 1}, {}]
)
def test_values_that_are_no_class_are_refused(label):
    with pytest.raises(ValueError, match="no class|index must be"):
        class_index(label, ["cat", "dog", "owl"])


def test_several_classes_are_a_list():
    assert class_indices({"index": [10, 3]}, TWELVE) == [10, 3] and class_indices({"index": 10}, TWELVE) == [10]
    assert class_indices(["10", {"index": 10}, 0], TWELVE) == [1, 10, 0]
    assert resolve_labels({"index": [10, 3]}, 3, TWELVE) == [10, 3, 10] and resolve_labels({"index": 4}, 1, TWELVE) == [
        4
    ]
    with pytest.raises(ValueError, match="index"):
        class_indices({"index": [12]}, TWELVE)


def test_labels_are_names_or_indices_on_the_command_line(tmp_path, command):
    names = ["1", "10", "3", "2"]
    file = save(tmp_path, class_names=names)
    common = [f"checkpoint={file}", "sampler.steps=1", "n=2"]
    for typed, index in {"labels=[10]": 1, "labels=['2']": 3, "labels.index=[2]": 2, "labels.index=2": 2}.items():
        done = command(sample, *common, typed, at=tmp_path)
        assert done.code == 0, done.err
        rows = [json.loads(line) for line in (tmp_path / done.folder / "manifest.jsonl").read_text().splitlines()[1:]]
        assert [(row["label"], row["class"]) for row in rows] == [(index, names[index])] * 2
    done = command(sample, *common, "labels=[2]", at=tmp_path)
    assert done.code == 1 and len(done.err.splitlines()) == 1
    assert all(text in done.err for text in ("labels: ", "labels=['2']", "labels.index=[2]"))  # index 2 is class 2, ...
    done = command(sample, *common, "labels.index=[4]", at=tmp_path)
    assert done.code == 1 and "labels.index must be 0 to 3, got 4" in done.err and len(done.err.splitlines()) == 1


@pytest.mark.parametrize("guidance, wrap", [("negative", "{}"), ("compose", "[{}]")])
def test_classes_of_guidance_are_names_or_indices_on_the_command_line(guidance, wrap, tmp_path, command):
    """With the same samples."""
    key = "guidance.condition" + "s" * (guidance == "compose")
    common = [
        "oracle=cfg_figure",
        "oracle.class_names=['10','2','1']",
        "sampler.steps=2",
        "n=2",
        f"guidance={guidance}",
    ]
    common += ["guidance.weights=[1]"] * (guidance == "compose")

    def samples(argument: str, value: str) -> numpy.ndarray:
        done = command(sample, *common, f"{argument}={wrap.format(value)}", at=tmp_path)
        assert done.code == 0, done.err
        return numpy.load(tmp_path / done.folder / "samples.npz")["arr_0"]

    zero, one, two = (samples(f"{key}.index", str(index)) for index in range(3))
    assert (
        (samples(key, "10") == zero).all() and (samples(key, "'2'") == one).all() and (samples(key, "'1'") == two).all()
    )
    assert (zero != one).any() and (one != two).any()
    done = command(sample, *common, f"{key}={wrap.format('2')}", at=tmp_path)
    assert done.code == 1 and len(done.err.splitlines()) == 1
    assert all(text in done.err for text in (f"{key.split('.')[1]}.index={wrap.format('2')}", "'1'"))


def test_a_model_has_its_class_names_before_and_after_training(tmp_path, command):
    """Also when it is loaded in Python."""
    model = diffguide.load(save(tmp_path, class_names=["10", "2", "1", "3"]))
    everywhere = (0.0, float("inf"))
    assert (
        NegativeCondition(model, "1", 2.0, everywhere).condition
        == NegativeCondition(model, {"index": 2}, 2.0, everywhere).condition
        == 2
    )
    assert ClassComposition(model, [10, 0], [1.0, 1.0], 2.0, everywhere).conditions == [0, 0]
    done = command(train, "dry_run=true", "guidance=negative", "guidance.condition=cat", at=tmp_path)
    assert done.code == 1 and "names: 0, 1, 2" in done.err, done.err


def test_suggested_names_with_commas_or_spaces_are_in_quotes():
    with pytest.raises(ValueError, match=r"names: cat, 'a, b', ' c', ''$"):
        class_index("dog", ["cat", "a, b", " c", ""])
