import re
from collections import Counter

import pytest

import selfloop
from law_checks import CONTEXT
from selfloop.columns import Ragged
from selfloop.errors import SettingError, SpecError
from selfloop.families.ngram import Ngram
from selfloop.families.transformer.text_sampler import TextSampler
from selfloop.metrics.text_features import CorrectRate
from selfloop.protocols import CorpusSource, SupportsTruth
from selfloop.snapshots import Snapshot
from selfloop.sources.expressions import Expressions
from selfloop.sources.text_corpora import PythonDocs
from selfloop.spec.spec import Spec
from selfloop.testing import check_source


def texts_of(source):
    (rows,) = source.chunks()
    return [text.decode() for text in rows["text"].to_bytes()]


def are_correct(source, *texts):
    return source.is_correct({"text": Ragged.of_bytes([text.encode() for text in texts])}).tolist()


def test_truth_is_that_of_the_expression():
    logic, arithmetic = Expressions(rows=10), Expressions(kind="arithmetic", rows=10)
    assert isinstance(logic, CorpusSource)
    assert isinstance(logic, SupportsTruth)
    right = ["not ( T and F ) = T", "F or T and F = F", "not F = T", "T = T", "not not T  = T"]
    wrong = [
        "not ( T and F ) = F",
        "T and F",
        "T and = T",
        "T = 1",
        "",
        "x = T",
        "T & F = F",
        "( T = T",
        "T or F = T = T",
        "1 = 1",
        "T or F ( T ) = T",  # Python would not call F
        "not ( ) = T",
    ]
    assert are_correct(logic, *right) == [True] * len(right)
    assert are_correct(logic, *wrong) == [False] * len(wrong)
    right = ["3 * ( 4 - 9 ) = -15", "2 + 3 * 4 = 14", "7 = 7", "- 7 - 1 = -8"]
    wrong = ["3 * ( 4 - 9 ) = 15", "2 + 3 * 4 = 20", "8 / 2 = 4", "2 ** 3 = 8", "1 + 1 = 2 = 2", "T = T", "1 and 1 = 1",
             "9" * 9999, "(" * 900 + "1 = 1", "1_0 = 10.0", "2 + 2 = 4 '", "\0 = 0"]  # fmt: skip
    assert are_correct(arithmetic, *right) == [True] * len(right)
    assert are_correct(arithmetic, *wrong) == [False] * len(wrong)


@pytest.mark.parametrize("kind", ["logic", "arithmetic"])
def test_rows_are_different_and_right_but_for_the_noise(kind):
    clean, noisy = (Expressions(kind=kind, depth=3, rows=400, noise=noise) for noise in (0.0, 0.3))
    assert all(are_correct(clean, *texts_of(clean)))
    assert sum(are_correct(clean, *texts_of(noisy))) == 280
    expressions = [text.partition(" = ")[0] for text in texts_of(clean)]
    assert len(set(expressions)) == 400
    assert [text.partition(" = ")[0] for text in texts_of(noisy)] == expressions
    python = {"logic": lambda text: "FT"[eval(text, {"T": True, "F": False})], "arithmetic": lambda text: str(eval(text))}[kind]
    assert all(python(left) == text.partition(" = ")[2] for left, text in zip(expressions, texts_of(clean), strict=True))
    assert {len(re.findall(r"and|or|not|[-+*]", left)) for left in expressions} <= set(range(3, 8))
    answers = Counter(text.partition(" = ")[2] for text in texts_of(noisy))
    assert kind == "arithmetic" or 120 < answers["T"] < 280
    check_source(clean)


def test_a_small_space_of_expressions_is_refused():
    with pytest.raises(SettingError, match=r"source\.rows: got 11; only 10 different expressions with depth = 1 were drawn"):
        Expressions(depth=1, rows=11).n_rows()
    assert Expressions(depth=1, rows=10).n_rows() == 10


def test_a_model_of_expressions_has_a_correct_rate(tmp_path):
    family, source = Ngram(order=6, vocab=257, smoothing=0.0), Expressions(depth=2, rows=60, noise=0.2)
    (rows,), encoder = source.chunks(), family.encoder()
    prepared = encoder.prepare([rows], CONTEXT)
    samples = encoder.encode(rows, prepared)
    snap = Snapshot(1, family, TextSampler(), prepared, samples, {}, samples, {}, source=source)
    assert CorrectRate().measure(snap, CONTEXT) == {"correct_rate": 0.8}
    spec = Spec(source=source, family=family, n=50, holdout=10, generations=2, seeds=1, policies=("replace",),
                metrics=("correct_rate", "cross_entropy"))  # fmt: skip
    result = selfloop.run(spec, tmp_path)
    assert 0.1 < result.curves()["replace"]["correct_rate"][0, 0] < 1
    with pytest.raises(SpecError, match="'correct_rate' needs a source that can check"):
        Spec(source=PythonDocs(), family=family, n=10, policies=("replace",), metrics=(CorrectRate(),)).points()
