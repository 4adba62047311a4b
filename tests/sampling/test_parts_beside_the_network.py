"""What a sampling run has beside its network: frozen text encoders and a first stage, compared when it is resumed."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from diffguide.conditions.classes import Classes
from diffguide.conditions.frozen_text import T5Text
from diffguide.conditions.several import SeveralConditions
from diffguide.runtime.errors import InputError
from diffguide.sampling.job import check_parts
from diffguide.sampling.sources import hash_encoders

ONE, OTHER = "1" * 64, "2" * 64


def encoder(sha256: str) -> T5Text:
    return T5Text("nowhere", length=4, sha256=sha256, features=2)


def test_encoders_are_named_by_their_part_or_their_kind():
    of_parts = SeveralConditions({"words": encoder(ONE), "kind": Classes(3, 2), "more": encoder(OTHER)})
    for conditioning, expected in (
        (None, {}),
        (Classes(3, 2), {}),
        (encoder(ONE), {"t5": ONE}),
        (of_parts, {"words": ONE, "more": OTHER}),
    ):
        assert hash_encoders(SimpleNamespace(conditioning=conditioning)) == expected


def test_a_resumed_run_keeps_them():
    now = {"text_encoders_sha256": {"t5": ONE}, "first_stage_sha256": ONE}
    check_parts(now, {**now, "n": 3}, Path("run"))
    check_parts(now, {}, Path("run"))  # begun by an earlier version
    with pytest.raises(InputError, match=f"resume: run began with first_stage_sha256={OTHER}, and it is {ONE} now"):
        check_parts(now, {**now, "first_stage_sha256": OTHER}, Path("run"))
    with pytest.raises(InputError, match="text_encoders_sha256"):
        check_parts(now, {"text_encoders_sha256": {"t5": OTHER}}, Path("run"))
