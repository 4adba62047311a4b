"""Class labels by name or index.

A text is a name. YAML and Hydra parse unquoted words such as 10, true, 1e3 or null, which may be a class name or an index.
`class_index` tries both and raises an error if they are different classes.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, TypeGuard

import yaml

__all__ = [
    "ClassLabel",
    "ClassLabels",
    "ConditionValue",
    "ConditionValues",
    "class_index",
    "class_indices",
    "explain_shadowed_class",
    "resolve_labels",
]

ClassLabel = int | float | str | bool | None | Mapping[str, int]  # a name, an index, or {index: 3}
ClassLabels = Sequence[ClassLabel] | Mapping[str, int | Sequence[int]]  # several, or {index: [3, 5]}
ConditionValue = (
    ClassLabel | Sequence[str | float] | Mapping[str, str | float]
)  # or what a conditioning reads, such as a text
ConditionValues = ClassLabels | Sequence[ConditionValue]
WORDS = {"class": ("classes", "names"), "prompt": ("prompts", "texts")}  # several of them, and what says which
LABEL_KEYWORDS = {"balanced": "takes the classes in turn", "all": "goes class by class", None: "is no condition"}
MAX_NAMES_SHOWN = 12  # names in a message


def resolve_labels(labels, n: int, class_names: Sequence[str], noun: str = "class") -> list[int] | None:
    """The class index of each of n samples, or None for no condition.

    Arguments:
        labels: `balanced` = the classes in turn, so that every prefix is balanced; `all` = class by class; a name or
            index, or a list of them taken in turn, as for `class_indices`; None = no condition.
        n: number of samples.
        class_names: one per class.
        noun: what they name, for messages: class or prompt.

    Raises:
        ValueError: an unknown class, an ambiguous value, or labels for a model without classes.
    """
    if labels is None or (labels in ("balanced", "all") and not class_names):
        return None
    classes = len(class_names)
    if labels == "balanced":
        return [i % classes for i in range(n)]
    if labels == "all":
        return sorted(i % classes for i in range(n))
    chosen = class_indices(labels if isinstance(labels, list | Mapping) else [labels], class_names, noun=noun)
    if not chosen:
        raise ValueError(f"the list is empty; give {WORDS[noun][0]}, balanced, all, or null for no condition")
    return [chosen[i % len(chosen)] for i in range(n)]


def explain_shadowed_class(labels, class_names: Sequence[str]) -> str | None:
    """A hint on how to select a class whose name is a keyword of `labels`, if that keyword was given; else None."""
    if isinstance(labels, list | Mapping) or labels not in LABEL_KEYWORDS:
        return None
    word = "null" if labels is None else labels
    if word not in class_names:
        return None
    return f"labels={word} {LABEL_KEYWORDS[labels]}; the class of that name is \"labels=['{word}']\""


def class_indices(
    labels: ClassLabels,
    class_names: Sequence[str],
    argument: str = "labels",
    count: int | None = None,
    noun: str = "class",
) -> list[int]:
    """The indices of several classes: a list of labels for `class_index`, or {index: [3, 5]}. As `class_index`."""
    if isinstance(labels, Mapping):
        indices = labels["index"] if [*labels] == ["index"] else None
        each: Sequence[Any] = [{"index": index} for index in indices] if isinstance(indices, list | tuple) else [labels]
    else:
        each = labels
    return [class_index(label, class_names, argument, count, True, noun) for label in each]


def class_index(
    label: ClassLabel,
    class_names: Sequence[str],
    argument: str = "labels",
    count: int | None = None,
    several: bool = False,
    noun: str = "class",
) -> int:
    """The index of one class.

    Arguments:
        label: a text = the name; a number or another plain value = the index, or the class whose name YAML or Hydra parses
            to this value (true, 1e3, 007, null); {"index": 3} = the index only.
        class_names: one per class; () = unknown.
        argument: name of the argument, for messages.
        count: number of classes; None = number of names.
        several: whether the argument is a list, for messages.
        noun: what is chosen, for messages: class or prompt.

    Raises:
        ValueError: no such class, an ambiguous value, or a model without classes.
    """
    count = len(class_names) if count is None else count
    if not count:
        raise ValueError(f"this model has no classes, got {label!r}; remove {argument}")

    def by_name(name: str) -> str:
        return f"\"{argument}=['{name}']\"" if several else f"\"{argument}='{name}'\""

    def by_index(index: int) -> str:
        return f"{argument}.index=[{index}]" if several else f"{argument}.index={index}"

    if isinstance(label, Mapping):
        if [*label] != ["index"] or not is_index(label["index"], count):
            raise ValueError(f"{argument}.index must be 0 to {count - 1}, got {label.get('index', dict(label))!r}")
        return label["index"]
    named = [index for index, name in enumerate(class_names) if may_mean(label, name)]
    found = {*named, label} if is_index(label, count) else set(named)
    if len(found) == 1:
        return found.pop()
    if found:
        repeated = len({class_names[index] for index in named}) < len(named)
        options = {index: by_index(index) if repeated else by_name(class_names[index]) for index in named}
        if is_index(label, count):
            options.setdefault(label, by_index(label))
        ways = [f"{way} is {noun} {class_names[index]!r}, of index {index}" for index, way in options.items()]
        raise ValueError(f"{label!r} may mean {len(found)} {WORDS[noun][0]}: {'; '.join(ways)}")
    raise ValueError(
        f"there is no {noun} {label!r}; {describe_choices(class_names, count, noun)}{suggest_label(label, by_index, count)}"
    )


def is_index(label: object, count: int) -> TypeGuard[int]:
    """Whether a value is an index of one of `count` classes; booleans are not."""
    return isinstance(label, int) and not isinstance(label, bool) and 0 <= label < count


def may_mean(label, name: str) -> bool:
    """Whether a value is the name of a class, or that name parsed without quotes."""
    return name == label if isinstance(label, str) else (type(label), repr(label)) in parse_unquoted(name)


@cache
def parse_unquoted(name: str) -> frozenset[tuple[type, str]]:
    """(type, repr) of the values of an unquoted name: in YAML, in Hydra's grammar, and as a decimal number."""
    words: dict[str, object] = {"true": True, "false": False, "null": None}
    values = [words[name.lower()]] if name.lower() in words else []
    with suppress(yaml.YAMLError, ValueError):  # a name that is not valid YAML, or an invalid date
        values.append(yaml.safe_load(name))
    if name.isascii():
        for number in (int, float):
            with suppress(ValueError):
                values.append(number(name))
                break
    return frozenset((type(value), repr(value)) for value in values if not isinstance(value, str))


def describe_choices(class_names: Sequence[str], count: int, noun: str) -> str:
    """The valid classes or prompts, for a message."""
    names = [
        repr(name) if "," in name or name != name.strip() or not name else name
        for name in class_names[:MAX_NAMES_SHOWN]
    ]
    if not class_names:
        return f"indices 0 to {count - 1}; its class names are unknown"
    more = ", ..." if len(class_names) > MAX_NAMES_SHOWN else ""
    return f"indices 0 to {count - 1}, or {WORDS[noun][1]}: {', '.join(names)}{more}"


def suggest_label(label, by_index: Callable[[int], str], count: int) -> str:
    """A hint for values that are often meant otherwise."""
    if label == -1:
        return "; labels=null is no condition"
    if isinstance(label, str) and label.isdecimal() and is_index(int(label), count):
        return f"; a text is a name, {by_index(int(label))} is the index"
    return ""
