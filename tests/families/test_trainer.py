"""The trainer: a fit is a function of rows, stream, start and settings, whatever interrupts it."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from selfloop.component import Context
from selfloop.errors import ChainEndedError, SpecError
from selfloop.families.nn import checkpoint, trainer
from selfloop.families.nn.settings import TrainingSettings
from selfloop.families.nn.trainer import Task
from selfloop.rng import RandomStream

ROWS, D = 50, 6
EVERYTHING = TrainingSettings(
    steps=60, batch_size=16, learning_rate=0.01, weight_decay=0.1, warmup=5, lr_schedule="cosine", ema_decay=0.9, checkpoint_seconds=0.0
)


class Killed(BaseException):
    """What a test raises in the middle of a step."""


def noisy_regression(weights=None, stop_at=None, seen=None):
    """A network with dropout, batch statistics and noise in its loss: everything that could depend on an interruption."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((ROWS, D))).float()
    y = x.sum(1)
    with trainer.seed_torch(RandomStream(("init",))):
        model = nn.Sequential(nn.Linear(D, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))
    calls = iter(range(10**9))

    def loss(indices):
        if next(calls) == stop_at:
            raise Killed
        if seen is not None:
            seen.append(indices.numpy().copy())
        noisy = x[indices] + 0.1 * torch.randn(len(indices), D)
        return (model(noisy)[:, 0] - y[indices]).square()

    return Task(model, loss, np.ones(ROWS) if weights is None else weights)


def linear_regression(weights, target):
    """One scalar with a quadratic loss: its optimum is the weighted mean."""
    model = nn.Linear(1, 1, bias=False)
    values = torch.from_numpy(target).float()
    return Task(model, lambda indices: (model.weight[0, 0] - values[indices]).square(), weights)


def run(training=EVERYTHING, scratch=None, start=None, name="fit", **how):
    return trainer.fit(noisy_regression(**how), training, Context(RandomStream((name,)), scratch), start)


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole():
    return run()


@pytest.mark.parametrize("step", range(0, 60, 7))
def test_a_fit_stopped_at_any_step_continues_to_the_same_bits(tmp_path, whole, step):
    with pytest.raises(Killed):
        run(scratch=tmp_path, stop_at=step)
    seen = []
    assert same(run(scratch=tmp_path, seen=seen), whole)
    assert len(seen) == 60 - step  # it continued, and did not begin again


def test_a_fit_stopped_twice_continues_to_the_same_bits(tmp_path, whole):
    for stop_at in (20, 15):
        with pytest.raises(Killed):
            run(scratch=tmp_path, stop_at=stop_at)
    assert same(run(scratch=tmp_path), whole)


@pytest.mark.parametrize("lost", ["average/0", "second/0", "step/0", "buffer/1.running_mean", "vector/1"])
def test_the_resume_test_would_notice_a_state_that_is_not_kept(tmp_path, whole, lost):
    with pytest.raises(Killed):
        run(scratch=tmp_path, stop_at=30)
    file = tmp_path / "fit.safetensors"
    identity = repr((RandomStream(("fit",)), EVERYTHING, ROWS))
    step, tensors = checkpoint.load(file, identity)
    checkpoint.save(file, tensors | {lost: torch.zeros_like(tensors[lost])}, identity, step)
    assert not same(run(scratch=tmp_path), whole)


def test_killed_processes_leave_a_state_that_continues_to_the_same_bits(tmp_path):
    training, script = "Training(steps=400, batch=16, ema=0.9, checkpoint=0.0)", Path(__file__)
    code = (
        f"import sys; sys.path.insert(0, {str(script.parent)!r})\n"
        "import test_trainer as t\nfrom selfloop.families.nn.settings import Training\nfrom pathlib import Path\n"
        f"t.run({training}, scratch=Path({str(tmp_path)!r}))"
    )
    state = tmp_path / "fit.safetensors"
    rng = np.random.default_rng(3)
    for _ in range(3):
        before = state.stat().st_mtime_ns if state.exists() else 0
        child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})
        while child.poll() is None and (not state.exists() or state.stat().st_mtime_ns == before):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))
        child.send_signal(signal.SIGKILL)
        child.wait()
    continued = run(TrainingSettings(steps=400, batch_size=16, ema_decay=0.9, checkpoint_seconds=0.0), scratch=tmp_path)
    assert same(continued, run(TrainingSettings(steps=400, batch_size=16, ema_decay=0.9)))


def test_a_damaged_or_foreign_state_is_not_used(tmp_path, whole):
    with pytest.raises(Killed):
        run(scratch=tmp_path, stop_at=30, name="another stream")
    assert same(run(scratch=tmp_path), whole)
    (tmp_path / "fit.safetensors").write_bytes(b"torn")
    assert same(run(scratch=tmp_path), whole)


def test_a_fit_leaves_torchs_random_state_as_it_was(whole):
    before = torch.get_rng_state()
    assert same(run(), whole)
    assert torch.equal(torch.get_rng_state(), before)


def threaded(stop_at=None):
    """A loss whose noise the trainer draws, and whose parts two threads compute."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((ROWS, D))).float()
    with trainer.seed_torch(RandomStream(("init",))):
        model = nn.Sequential(nn.Linear(D, 16), nn.Tanh(), nn.Linear(16, 1))
    calls = iter(range(10**9))

    def loss(indices, noise):
        if next(calls) == stop_at:
            raise Killed
        return (model(x[indices] + noise)[:, 0] - x[indices].sum(1)).square()

    return Task(model, loss, np.ones(ROWS), threads=2, noise=lambda rows: 0.1 * torch.randn(rows, D))


def test_threads_that_share_a_batch_and_its_noise_continue_to_the_same_bits(tmp_path):
    def run_threads(scratch=None, stop_at=None, name="fit"):
        return trainer.fit(threaded(stop_at), EVERYTHING, Context(RandomStream((name,)), scratch), None)

    whole = run_threads()
    with pytest.raises(Killed):
        run_threads(tmp_path, stop_at=61)
    assert same(run_threads(tmp_path), whole)
    assert not same(run_threads(name="another"), whole)


def test_other_streams_give_other_models(whole):
    assert not same(run(name="another"), whole)


def test_how_often_the_state_is_kept_changes_no_bit(tmp_path, whole):
    training = TrainingSettings(**{**vars(EVERYTHING), "checkpoint_seconds": 0.01})
    assert same(run(training, scratch=tmp_path), whole)


def test_every_row_is_seen_once_an_epoch():
    seen = []
    run(TrainingSettings(epochs=8, batch_size=20), seen=seen)
    assert all(len(batch) == 20 for batch in seen)
    epochs = np.concatenate(seen).reshape(8, ROWS)
    assert all(np.array_equal(np.sort(epoch), np.arange(ROWS)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])


def test_epochs_grow_with_the_rows_and_steps_do_not():
    assert TrainingSettings(epochs=4, batch_size=32).count_steps(64) == 8
    assert TrainingSettings(epochs=4, batch_size=32).count_steps(128) == 16
    assert TrainingSettings(epochs=4, batch_size=32, steps=9).count_steps(10_000) == 9
    assert TrainingSettings(epochs=4, batch_size=32).count_steps(5) == 4  # a batch is at most all rows


def test_row_weights_multiply_the_loss():
    target = np.repeat([0.0, 1.0], 20)
    weights = np.repeat([0.5, 1.5], 20)
    settings = TrainingSettings(steps=600, batch_size=40, learning_rate=0.02)
    weighted, plain = (
        trainer.fit(linear_regression(each, target), settings, Context(RandomStream()), None)["weight"].item()
        for each in (weights, np.ones(40))
    )
    assert weighted == pytest.approx(0.75, abs=1e-3)
    assert plain == pytest.approx(0.5, abs=1e-3)  # weights ignored would give this


def test_optimiser_matches_torchs_own_loop():
    """Full batches, so the plain loop is six lines."""
    settings = TrainingSettings(steps=30, batch_size=ROWS, learning_rate=0.01, weight_decay=0.2, lr_schedule="linear", warmup=3, max_grad_norm=0.5)
    x = torch.randn(ROWS, D, generator=torch.Generator().manual_seed(1))

    def model():
        with trainer.seed_torch(RandomStream(("init",))):
            return nn.Linear(D, 2)

    ours, plain = model(), model()
    trainer.fit(Task(ours, lambda i: (ours(x[i]) - 1).square().sum(1), np.ones(ROWS)), settings, Context(RandomStream()), None)
    optimizer = torch.optim.AdamW(
        [{"params": [plain.weight], "weight_decay": 0.2}, {"params": [plain.bias], "weight_decay": 0}]
    )
    for step in range(30):
        optimizer.zero_grad()
        (plain(x) - 1).square().sum(1).mean().backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(step, 30)
        optimizer.step()
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_gradient_that_lies_transposed_in_memory_moves_the_right_parameters():
    task = linear_regression(np.ones(40), np.full(40, 9.0))
    model = nn.ParameterList([nn.Parameter(torch.zeros(2, 3))])
    target = torch.tensor([[1.0, -1.0, 1.0], [1.0, -1.0, -1.0]])

    def loss(indices):
        transposed = torch.cat([model[0].t() * 1.0])  # whose gradient's transpose is no contiguous tensor
        (found,) = torch.autograd.grad((transposed - target.t()).square().sum(), model[0], retain_graph=True)
        assert not found.is_contiguous()
        return (transposed - target.t()).square().sum().expand(len(indices))

    settings = TrainingSettings(steps=1, learning_rate=0.1, lr_schedule="constant")
    fitted = trainer.fit(replace(task, model=model, loss=loss), settings, Context(RandomStream()), None)
    assert fitted["0"] == pytest.approx(0.1 * target.numpy(), abs=1e-6)  # AdamW's first step has the gradient's sign


def test_parameters_that_share_one_gradient_are_clipped_alike():
    model = nn.ParameterList([nn.Parameter(torch.zeros(2)) for _ in range(2)])

    def loss(indices):
        summed = model[0] + model[1]  # autograd gives both the same tensor
        one, other = torch.autograd.grad((summed - 9).square().sum(), list(model), retain_graph=True)
        assert one.data_ptr() == other.data_ptr()
        return (summed - 9).square().sum().expand(len(indices))

    settings = TrainingSettings(steps=20, learning_rate=0.1, lr_schedule="constant", max_grad_norm=1.0)
    task = replace(linear_regression(np.ones(40), np.full(40, 9.0)), model=model, loss=loss)
    fitted = trainer.fit(task, settings, Context(RandomStream()), None)
    assert np.array_equal(fitted["0"], fitted["1"])


def test_averages_of_a_gradient_that_stays_zero_become_zero_and_not_denormal():
    """It is not 0 in the first step, so that there is something to decay; 0.9^800 is below the smallest normal number."""
    model, seen, calls = nn.ParameterList([nn.Parameter(torch.zeros(3))]), [], []

    def loss(indices):
        calls.append(1)
        return (model[0] * (1.0 if len(calls) == 1 else 0.0)).sum().expand(len(indices))

    class Watched(trainer._TrainingState):
        def clear(self):
            super().clear()
            seen.append(self.groups[0].first.clone())

    task = replace(linear_regression(np.ones(40), np.full(40, 9.0)), model=model, loss=loss)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_State", Watched)
        trainer.fit(task, TrainingSettings(steps=901, lr_schedule="constant"), Context(RandomStream()), None)
    smallest = torch.finfo(torch.float32).tiny
    assert seen[1].min() > 0
    assert all(((each == 0) | (each.abs() >= smallest)).all() for each in seen)
    assert (seen[-1] == 0).all()


def test_learning_rate_follows_its_schedule():
    linear = TrainingSettings(learning_rate=1.0, lr_schedule="linear", warmup=2)
    assert [linear.rate(s, 6) for s in range(6)] == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])
    cosine = TrainingSettings(learning_rate=1.0, lr_schedule="cosine")
    assert [cosine.rate(s, 4) for s in range(4)] == pytest.approx([1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5])
    assert TrainingSettings(learning_rate=1.0, lr_schedule="constant").rate(3, 4) == 1.0


def test_the_parameter_average_becomes_the_model():
    def fitted(ema):
        task = linear_regression(np.ones(40), np.full(40, 9.0))
        settings = TrainingSettings(steps=2, learning_rate=0.1, lr_schedule="constant", ema_decay=ema)
        return trainer.fit(task, settings, Context(RandomStream()), {"weight": np.zeros((1, 1))})["weight"].item()

    assert fitted(None) == pytest.approx(0.2, abs=1e-3)  # far from the optimum AdamW's steps have the learning rate's size
    assert fitted(0.5) == pytest.approx((0.25 * 0.1 + 0.5 * 0.2) / 0.75, abs=1e-3)  # nothing of where it began


def test_cudnn_stays_on_in_a_fit():
    seen, task = [], linear_regression(np.ones(40), np.full(40, 9.0))
    loss = lambda *given: (seen.append(torch.backends.cudnn.enabled), task.loss(*given))[1]  # noqa: E731
    trainer.fit(replace(task, loss=loss), TrainingSettings(steps=1), Context(RandomStream()), None)
    assert seen == [torch.backends.cudnn.enabled]


def test_a_fit_can_begin_from_another_models_parameters(whole):
    frozen = TrainingSettings(steps=1, learning_rate=1e-12)
    again = run(frozen, start=whole)
    assert np.allclose(again["4.weight"], whole["4.weight"], atol=1e-9)
    assert not np.allclose(run(frozen)["4.weight"], whole["4.weight"], atol=1e-3)


def test_a_start_of_another_form_is_refused(whole):
    with pytest.raises(SpecError, match=r"start: array '0.weight' is \(3, 3\); this network needs \(16, 6\)"):
        run(start={**whole, "0.weight": np.zeros((3, 3))})


@pytest.mark.parametrize("when", [0, 55])
def test_a_loss_that_is_not_finite_ends_the_chain(when):
    model = nn.Linear(1, 1)
    calls = iter(range(1000))

    def loss(indices):
        return model(torch.ones(len(indices), 1))[:, 0] * (float("nan") if next(calls) == when else 1.0)

    with pytest.raises(ChainEndedError, match="diverged"):
        trainer.fit(Task(model, loss, np.ones(8)), TrainingSettings(steps=60, batch_size=4), Context(RandomStream()), None)


def test_facts_of_the_fit_come_with_the_parameters(whole):
    assert int(whole["training/steps"]) == 60
    assert int(whole["training/rows"]) == 60 * 16
    assert whole["training/loss"].shape == (60,)
    assert whole["training/loss"][-10:].mean() < whole["training/loss"][:10].mean()


def test_bfloat16_agrees_roughly_and_float32_parameters_stay():
    plain, short = (run(TrainingSettings(steps=40, precision=p)) for p in ("float32", "bfloat16"))
    assert short["0.weight"].dtype == np.float32
    assert not same(plain, short)
    assert np.allclose(plain["0.weight"], short["0.weight"], atol=0.02)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("epochs", 0), ("steps", 0), ("batch", 0), ("learning_rate", 0.0), ("clip", -1.0), ("ema", 1.0), ("warmup", -1),
     ("weight_decay", float("nan")), ("schedule", "sine"), ("precision", "float16"), ("checkpoint", -1.0),
     ("first_steps", 0), ("beta2", 1.0), ("compile", "always")],
)  # fmt: skip
def test_impossible_settings_are_refused_by_name(setting, value):
    with pytest.raises(SpecError, match=rf"family\.training\.{setting}: got"):
        TrainingSettings(**{setting: value})
