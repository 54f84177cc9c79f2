"""Settings of sampling text, and prompts."""

from dataclasses import dataclass, replace

import pytest

import selfloop
import tiny_components
from selfloop.columns import Ragged
from selfloop.component import Context
from selfloop.errors import DataError, SettingError, SpecError
from selfloop.families.transformer.text_sampler import TextSampler, read_prompts
from selfloop.families.transformer.tokenizer import BytePair
from selfloop.rng import RandomStream
from selfloop.store.identity import identity
from tiny_language_models import ragged, token_lists

CTX = Context(RandomStream())


@dataclass(frozen=True, kw_only=True)
class Templated(tiny_components.Mean):
    """A family with a response template."""

    response_template: str = ""


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


CHATS = (
    "user: who?\nassistant: the cat",
    "user: a dog, assistant: no\nassistant: yes",
    "user: ran\nassistant: far away, it ran",
)
TEMPLATE = "\nassistant:"


def encode(texts):
    encoder = BytePair(vocab=300)
    prepared = encoder.prepare([{"text": Ragged.of_bytes([text.encode() for text in CHATS * 9])}], CTX)
    return {**encoder.encode({"text": Ragged.of_bytes([text.encode() for text in texts])}, prepared), **prepared}, encoder


def test_prompts_before_the_response_end_with_the_first_token_that_completes_the_template():
    initial, encoder = encode(CHATS)
    sampler = TextSampler(prompt="before", response_template=TEMPLATE)
    prompts = sampler.draw_prompts(5, initial, CTX)["prompt"]
    texts = [text.decode() for text in encoder.decode({"tokens": prompts}, initial)["text"].to_bytes()]
    assert [text[: len(text) - len(text.partition(TEMPLATE)[2])] for text in texts[:3]] == [
        chat.partition(TEMPLATE)[0] + TEMPLATE for chat in CHATS
    ]
    assert [token_lists(prompts)[i] for i in (3, 4)] == token_lists(prompts)[:2]
    for prompt, row in zip(token_lists(prompts), token_lists(initial["tokens"]), strict=False):
        assert row[: len(prompt)] == prompt
        (shorter,) = encoder.decode({"tokens": ragged([prompt[:-1]])}, initial)["text"].to_bytes()
        assert TEMPLATE not in shorter.decode()  # a token less would not be enough


def test_a_row_that_ends_with_the_template_is_a_prompt_without_its_end_token():
    initial, _ = encode(["user: who?\nassistant:"])
    (prompt,) = token_lists(TextSampler(prompt="before", response_template=TEMPLATE).draw_prompts(1, initial, CTX)["prompt"])
    assert prompt == token_lists(initial["tokens"])[0][:-1]


def test_rows_without_the_template_are_counted_in_one_sentence():
    initial, _ = encode([*CHATS, "user: x", "y"])
    sentence = (
        r"^family\.sampler\.prompt: got 'before'; 2 of 5 initial rows do not contain the response template '\\nassistant:'"
    )
    with pytest.raises(DataError, match=sentence):
        TextSampler(prompt="before", response_template=TEMPLATE).draw_prompts(3, initial, CTX)


@pytest.mark.parametrize(
    ("sampler", "family", "sentence"),
    [
        ({}, {}, "got ''; prompt = 'before' needs the text that ends a prompt, such as 'assistant:'. Set it."),
        ({"response_template": "b:"}, {"response_template": "a:"}, "got 'b:'; .*, 'a:' as in family.response_template. Remove"),
    ],
)
def test_a_prompt_before_nothing_is_refused_before_any_work(sampler, family, sentence):
    with pytest.raises(SettingError, match=rf"^family\.sampler\.response_template: {sentence}"):
        TextSampler(prompt="before", **sampler).complete(Templated(**family))


def test_the_template_is_the_familys_or_the_samplers_own():
    assert TextSampler(prompt="before").complete(Templated(response_template="a:")).response_template == "a:"
    swept = replace(TextSampler(prompt="before").complete(Templated(response_template="a:")), prompt="start")
    assert swept.complete(Templated(response_template="a:")) == TextSampler()
    own = TextSampler(prompt="before", response_template="b:")
    assert own.complete(Templated()) == own
    assert TextSampler(prompt="first_token").complete(Templated(response_template="a:")).response_template == ""
    with pytest.raises(SpecError, match=r"^family\.sampler\.response_template: got 'a:', which changes nothing"):
        selfloop.Spec(
            source="python_docs", family={"name": "transformer"}, sampler={"response_template": "a:"}, policies=["replace"]
        ).points()


def test_the_setting_of_a_template_leaves_the_identity_of_other_samplers_as_it_was():
    assert "response_template" not in str(identity(TextSampler(prompt="first_token")))
    assert "response_template" in str(identity(TextSampler(prompt="before", response_template="a:")))
