"""Names that hold anything get through the shell and Hydra's grammar."""

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from diffguide.config.quoting import explain_unreadable, quote, quote_odd

NAMES = [
    "plain/v001", "my images", "a=b", "a, b", "ü/ö", "it's", "back\\slash", "back\\", "both\\'", '"quoted"', "[a]{b}",
    "3", "1e3", "true",
    "$HOME ${x}", "~/x", "a#b", "(c)", "-m", "日本",
]  # fmt: skip


def parse(text: str):
    return OverridesParser.create().parse_override(text)


@pytest.mark.parametrize("name", NAMES)
def test_quoted_overrides_can_be_typed(name):
    (typed,) = shlex.split(quote(f"resume={name}"))
    assert parse(typed).value() == name


@pytest.mark.parametrize("key", ["dataset.path", "checkpoint", "resume"])
@pytest.mark.parametrize("name", [name for name in NAMES if name[0] not in "'\"["])
def test_a_path_needs_only_quotes_for_the_shell(key, name):
    (text,) = quote_odd([f"{key}={name}"])
    assert str(parse(text).value()) == name and not parse(text).is_sweep_override()


def test_other_overrides_are_unchanged():
    typed = [
        "labels=[1,2]",
        "guidance.scale=1,2",
        "objective=eps",
        "-m",
        "dataset.path='a, b'",
        "training.images=1e3",
        "~x",
    ]
    assert quote_odd(typed) == typed
    assert quote_odd(["-m", "checkpoint=a,b"]) == ["-m", "checkpoint=a,b"]  # two runs
    assert quote_odd(["checkpoint=a,b"]) == ["checkpoint='a,b'"]  # one path
    assert quote_odd(["checkpoint=[a,b]", "resume=[a]"]) == ["checkpoint=[a,b]", "resume='[a]'"]  # two checkpoints


FOREIGN = {
    "labels=[dögs,cats, 日本]": ["dögs", "cats", "日本"],
    "labels=[klässe = 1, a]": ["klässe = 1", "a"],
    "labels=[ klässe eins , b c,1]": ["klässe eins", "b c", 1],
    "labels=[a:ö (x), b]": ["a:ö (x)", "b"],
    "labels=[ö\\,b]": ["ö\\", "b"],
    "labels=klässe = 1": "klässe = 1",
    "x=[[ö,1],{a: ö, b: 2}]": [["ö", 1], {"a": "ö", "b": 2}],
    "labels=['true',üml, \"ä, b\"]": ["true", "üml", "ä, b"],
}


@pytest.mark.parametrize("typed, value", FOREIGN.items(), ids=range(len(FOREIGN)))
def test_labels_may_have_letters_beyond_ascii(typed, value):
    """Each element whole is one text."""
    (text,) = quote_odd([typed])
    assert parse(text).value() == value


@pytest.mark.parametrize("typed", ["labels=[ö", "labels=ö]", "guidance.scale=range(1,ö)"])
def test_an_invalid_override_is_reported_as_typed(typed):
    assert quote_odd([typed]) == [typed]


INDEX = {
    "labels.index=[10]": {"index": [10]},
    "labels.index=3": {"index": 3},
    "+guidance.parts.away.condition.index=3": {"index": 3},
    "guidance.conditions.index=[1,2]": {"index": [1, 2]},
}


@pytest.mark.parametrize("typed, value", INDEX.items(), ids=INDEX)
def test_a_class_index_becomes_a_mapping(typed, value):
    (text,) = quote_odd([typed])
    assert parse(text).value() == value and text.startswith(typed.partition(".index")[0] + "=")


def test_a_sweep_may_vary_class_indices():
    (text,) = quote_odd(["labels.index=[1],[2,3]", "-m"])[:1]
    values = list(parse(text).sweep_string_iterator())
    assert [parse(f"labels={value}").value() for value in values] == [{"index": [1]}, {"index": [2, 3]}]


@pytest.mark.parametrize(
    "typed, element", [("labels=[a,b&c]", "b&c"), ("labels=['true',x;y]", "x;y"), ("labels=[~]", "~")]
)
def test_the_message_names_the_element_that_needs_quotes(typed, element):
    """The suggestion can be typed: it passes the shell and Hydra's grammar."""
    with pytest.raises(HydraException) as raised:
        parse(typed)
    message = explain_unreadable(typed, raised.value)
    assert message.startswith("labels: ") and repr(element) in message and "\n" not in message
    (text,) = shlex.split(message.split("quotes, ")[1])
    assert element in parse(text).value()


def test_invalid_characters_of_a_key_are_reported():
    sentences = []
    for typed in ("labels=it's", "läbels=3"):
        with pytest.raises(HydraException) as raised:
            parse(typed)
        sentences.append(explain_unreadable(typed, raised.value))
    assert "a key cannot have" not in sentences[0] and "a key cannot have" in sentences[1]
