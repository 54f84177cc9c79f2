import numpy as np
import pytest
import torch
from torch.nn import functional

from selfloop.component import Context
from selfloop.errors import SettingError
from selfloop.families.nn.settings import TrainingSettings
from selfloop.families.transformer import network
from selfloop.families.transformer.family import Transformer
from selfloop.families.transformer.network import cross_entropy
from selfloop.rng import RandomStream
from selfloop.store.identity import identity
from selfloop.types import RowTake, TrainingRows
from tiny_language_models import ragged

CONTEXT = Context(RandomStream(("truncation",)))
PREPARED = {"tokenizer/start": np.array(0), "tokenizer/end": np.array(0), "tokenizer/json": np.zeros(1, np.uint8)}


@pytest.mark.parametrize("chunk_bytes", [1 << 20, 1])
def test_tokens_above_the_limit_have_no_loss_and_no_gradient(monkeypatch, chunk_bytes):
    monkeypatch.setattr(network, "CHUNK_BYTES", chunk_bytes)
    rng = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(*size, generator=rng, requires_grad=True) for size in ((5, 20, 8), (30, 8)))
    targets, weights = torch.randint(30, (5, 20), generator=rng), torch.rand(5, 20, generator=rng)
    losses = functional.cross_entropy((hidden @ head.T).flatten(0, 1), targets.flatten(), reduction="none")
    for limit in (0.02, 0.3):
        counted = (losses.detach().neg().exp() <= limit) * weights.flatten()
        assert 0 < counted.count_nonzero() < 100
        expected, ours = (losses * counted).sum(), cross_entropy(hidden, head, targets, weights, limit)
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=0.0)
        gradients, right = (torch.autograd.grad(loss, (hidden, head), retain_graph=True) for loss in (ours, expected))
        torch.testing.assert_close(gradients, right, rtol=1e-4, atol=1e-5)
    plain, all_tokens = (cross_entropy(hidden, head, targets, weights, *limit) for limit in ((), (1.0,)))
    assert plain.item() == all_tokens.item() > ours.item()


def test_a_truncated_model_is_less_certain_and_the_default_is_plain_cross_entropy():
    rng = np.random.default_rng(0)
    rows = {"tokens": ragged([[*rng.choice([1, 1, 1, 1, 1, 1, 1, 1, 2, 3], 15), 0] for _ in range(200)])}
    options = {"layers": 1, "hidden": 16, "heads": 2, "context": 16, "vocab": 5}
    training = TrainingSettings(steps=100, batch_size=16, learning_rate=1e-2)
    certainty = {}
    for limit in (None, 1.0, 0.6):
        family = Transformer(**options, training=training, **({} if limit is None else {"loss_truncation": limit}))
        params = family.fit(TrainingRows((RowTake(rows),), PREPARED), CONTEXT, None)
        log_prob = family.token_log_prob(params, {"tokens": ragged([[1] * 15])}, CONTEXT)
        certainty[limit] = float(np.exp(log_prob.values).mean())
    assert certainty[None] == certainty[1.0] > 0.75  # of the most frequent token, whose share is 0.8
    assert certainty[0.6] < 0.68


def test_an_added_setting_keeps_the_identity_of_older_results():
    (settings,) = identity(Transformer()).values()
    assert "loss_truncation" not in settings
    (settings,) = identity(Transformer(loss_truncation=0.5)).values()
    assert settings["loss_truncation"] == identity(0.5)
    with pytest.raises(SettingError, match="loss_truncation: got 0; expected a number above 0 and up to 1"):
        Transformer(loss_truncation=0)
