"""Settings of sampling text, and prompts."""

import pytest

from selfloop.component import Context
from selfloop.errors import SettingError
from selfloop.families.transformer.text_sampler import TextSampler, read_prompts
from selfloop.rng import RandomStream
from tiny_language_models import ragged, token_lists

CTX = Context(RandomStream())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"temperature": -0.1}, "temperature: got -0.1"),
        ({"temperature": 1e-9}, "temperature: got 1e-09; expected 0, or 1e-06 or more"),
        ({"temperature": float("nan")}, "temperature: got nan"),
        ({"top_k": 0}, "top_k: got 0"),
        ({"top_p": 0.0}, "top_p: got 0.0"),
        ({"top_p": 1.1}, "top_p: got 1.1"),
        ({"num_beams": 0}, "num_beams: got 0"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"prefix_tokens": 0}, "prefix_tokens: got 0"),
        ({"prompt": "bos"}, "prompt: got 'bos'"),
        ({"prompt": "prefix", "prefix_tokens": 9, "max_tokens": 9}, "prefix_tokens: got 9; expected less than max_tokens"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings, sentence):
    with pytest.raises(SettingError, match=f"^{sentence}"):
        TextSampler(**settings)


def test_prompts_are_the_beginnings_of_real_rows_without_their_end_tokens():
    initial = {"tokens": ragged([[5, 6, 7, 8, 1], [9, 1], [1]])}
    first = TextSampler(prompt="first_token").draw_prompts(5, initial, CTX)
    assert token_lists(first["prompt"]) == [[5], [9], [], [5], [9]]
    some = TextSampler(prompt="prefix", prefix_tokens=3).draw_prompts(4, initial, CTX)
    assert token_lists(some["prompt"]) == [[5, 6, 7], [9], [], [5, 6, 7]]
    assert TextSampler().draw_prompts(4, initial, CTX) == {}


def test_without_prompts_every_row_has_an_empty_prompt():
    assert token_lists(read_prompts({}, 3)) == [[], [], []]
    assert token_lists(read_prompts({"prompt": ragged([[4], [5]])}, 2)) == [[4], [5]]
