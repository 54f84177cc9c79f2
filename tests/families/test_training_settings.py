"""Settings of training: learning rates, numbers of steps, refused values."""

from __future__ import annotations

from typing import Any

import pytest

from selfloop.errors import SettingError
from selfloop.families.nn.settings import TrainingSettings


def test_epochs_add_steps_with_more_rows_and_a_number_of_steps_does_not() -> None:
    assert TrainingSettings(epochs=4, batch_size=32).count_steps(64) == 8
    assert TrainingSettings(epochs=4, batch_size=32).count_steps(128) == 16
    assert TrainingSettings(epochs=4, batch_size=32, steps=9).count_steps(10_000) == 9
    assert TrainingSettings(epochs=4, batch_size=32).count_steps(5) == 4  # a minibatch has at most all rows


def test_a_scaled_minibatch_reads_all_rows_as_often_whatever_their_number() -> None:
    settings = TrainingSettings(steps=10, epochs=2, batch_size=4, scale_batch=True)
    assert [(settings.batch_size_for(n), settings.count_steps(n)) for n in (50, 500)] == [(10, 10), (100, 10)]


def test_the_first_generation_can_have_its_own_number_of_steps() -> None:
    settings = TrainingSettings(first_generation_steps=3, steps=9, scale_batch=True)
    assert [settings.for_generation(t).steps for t in (1, 2, 3)] == [3, 9, 9]
    assert not settings.for_generation(1).scale_batch
    assert settings.for_generation(2) == TrainingSettings(steps=9, scale_batch=True)  # its key does not depend on generation 1


def test_the_learning_rate_follows_its_schedule() -> None:
    linear = TrainingSettings(learning_rate=1.0, lr_schedule="linear", warmup=2)
    assert [linear.learning_rate_at(step, 6) for step in range(6)] == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])
    share = TrainingSettings(learning_rate=1.0, lr_schedule="linear", warmup=0.25)
    assert [share.learning_rate_at(step, 8) for step in (0, 1, 2)] == pytest.approx([0.5, 1.0, 1.0])
    cosine = TrainingSettings(learning_rate=1.0, lr_schedule="cosine")
    expected = [1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5]
    assert [cosine.learning_rate_at(step, 4) for step in range(4)] == pytest.approx(expected)
    assert TrainingSettings(learning_rate=1.0, lr_schedule="constant").learning_rate_at(3, 4) == 1.0


@pytest.mark.parametrize(
    ("setting", "value"),
    [("epochs", 0), ("steps", 0), ("batch_size", 0), ("learning_rate", 0.0), ("max_grad_norm", -1.0), ("ema_decay", 1.0),
     ("warmup", -1), ("weight_decay", float("nan")), ("lr_schedule", "sine"), ("precision", "float16"),
     ("checkpoint_seconds", -1.0), ("first_generation_steps", 0), ("beta2", 1.0), ("compile", "always"), ("scale_batch", True)],
)  # fmt: skip
def test_impossible_settings_are_refused_by_name(setting: str, value: Any) -> None:
    with pytest.raises(SettingError, match=rf"^{setting}: got"):
        TrainingSettings(**{setting: value})
