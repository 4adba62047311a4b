"""Words by a hash of their bytes, against a loop over the characters of each text."""

import numpy as np
import pytest
import torch

from diffguide.conditions import ByteText
from diffguide.conditions.text import kept_ids

TEXTS = ["a red circle", "", "zwei blaue Würfel", "円と四角 two", "  A-b,c. Red RED red  ", "x" * 63, "naïve 2x2"]
WORDS = [
    ["a", "red", "circle"],
    [],
    ["zwei", "blaue", "würfel"],
    ["円", "と", "四", "角", "two"],
    ["a", "b", "c", "red", "red", "red"],
    ["x" * 63],
    ["naïve", "2x2"],
]
MODULUS, BASE = 2**31 - 1, 1_103_515_245


def hash_word(word: str) -> int:
    value = 0
    for byte in reversed(word.encode()):
        value = (value * BASE + byte + 1) % MODULUS
    return value


def test_a_word_is_a_run_of_letters_whatever_stands_around_it():
    text = ByteText(length=64, words=1009)
    rows, present = text.words.find_words(text.read(TEXTS).ids.long() - 1)
    found = [row[there].tolist() for row, there in zip(rows, present)]
    assert found == [[hash_word(word) % 1009 for word in words] for words in WORDS]


def test_the_vector_is_the_normalised_mean_of_its_words_beside_the_tokens():
    torch.manual_seed(0)
    plain, text = (ByteText(length=64, features=8, heads=2, words=words).double() for words in (0, 97))
    text.load_state_dict(text.state_dict() | plain.state_dict())
    ids = kept_ids(text.read(TEXTS))
    (pooled, states, _), (mean, same, _) = text.encode(ids), plain.encode(ids)
    assert torch.equal(states, same) and text.vector_features == 16 and text.token_features == 8
    table = text.words.table.weight.detach().numpy()
    for row, words in enumerate(WORDS):
        h = np.mean([table[hash_word(word) % 97] for word in words], 0) if words else np.zeros(8)
        h = (h - h.mean()) / np.sqrt(h.var() + 1e-5)
        np.testing.assert_allclose(pooled[row, 8:].detach(), h, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(pooled[:, :8], mean)


def test_a_table_has_no_negative_number_of_rows():
    with pytest.raises(ValueError, match="condition.words"):
        ByteText(words=-1)
