"""The trainer: a fit is a function of rows, stream, initial model and settings, and continues after an interruption."""

import json
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
from selfloop.families.nn.trainer import TrainingProblem
from selfloop.rng import RandomStream

ROWS, D = 50, 6
ALL_SETTINGS = TrainingSettings(
    steps=60, batch_size=16, learning_rate=0.01, weight_decay=0.1, warmup=5, ema_decay=0.9, checkpoint_seconds=0.0
)
MANY_STEPS = TrainingSettings(steps=200, batch_size=16, ema_decay=0.9, checkpoint_seconds=0.0)


class Killed(BaseException):
    """Raised by a test in the middle of a step."""


def context(name="fit", scratch=None):
    return Context(RandomStream((name,)), scratch)


def noisy_regression(weights=None, stop_at=None, minibatches=None):
    """A network with dropout, batch statistics and noise in its loss: everything that could depend on an interruption."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((ROWS, D))).float()
    y = x.sum(1)
    with trainer.seed_torch(RandomStream(("init",))):
        network = nn.Sequential(nn.Linear(D, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))
    calls = iter(range(10**9))

    def loss(indices):
        if next(calls) == stop_at:
            raise Killed
        if minibatches is not None:
            minibatches.append(indices.numpy().copy())
        noisy = x[indices] + 0.1 * torch.randn(len(indices), D)
        return (network(noisy)[:, 0] - y[indices]).square()

    return TrainingProblem(network, loss, np.ones(ROWS) if weights is None else weights)


def mean_estimation(weights, values):
    """One parameter with a quadratic loss: its optimum is the weighted mean."""
    network = nn.Linear(1, 1, bias=False)
    values = torch.from_numpy(values).float()
    return TrainingProblem(network, lambda indices: (network.weight[0, 0] - values[indices]).square(), weights)


def run(settings=ALL_SETTINGS, scratch=None, init=None, name="fit", **changes):
    return trainer.fit(noisy_regression(**changes), settings, context(name, scratch), init)


def are_equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole():
    return run()


@pytest.mark.parametrize("step", [0, 1, 30, 51, 59])
def test_a_fit_stopped_at_any_step_continues_to_the_same_bits(tmp_path, whole, step):
    with pytest.raises(Killed):
        run(scratch=tmp_path, stop_at=step)
    minibatches = []
    assert are_equal(run(scratch=tmp_path, minibatches=minibatches), whole)
    assert len(minibatches) == 60 - step  # it continued from the checkpoint


def test_a_fit_stopped_twice_continues_to_the_same_bits(tmp_path, whole):
    for stop_at in (20, 15):
        with pytest.raises(Killed):
            run(scratch=tmp_path, stop_at=stop_at)
    assert are_equal(run(scratch=tmp_path), whole)


def identity_in(file):
    """The identity of the fit whose checkpoint this is, without the name of the folder."""
    data = file.read_bytes()
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    return metadata["identity"].removeprefix(f"{file.parent.name} ")


@pytest.mark.parametrize("name", ["average", "second", "step", "buffer/1.running_mean", "vector"])
def test_the_resume_test_would_notice_an_array_missing_from_the_checkpoint(tmp_path, whole, name):
    with pytest.raises(Killed):
        run(scratch=tmp_path, stop_at=30)
    file = tmp_path / "fit.safetensors"
    step, tensors = checkpoint.load(file, identity_in(file))
    checkpoint.save(file, tensors | {name: torch.zeros_like(tensors[name])}, identity_in(file), step)
    assert not are_equal(run(scratch=tmp_path), whole)


def test_a_killed_process_leaves_a_checkpoint_that_continues_to_the_same_bits(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom pathlib import Path\n"
        f"import test_trainer as t\nt.run(t.MANY_STEPS, scratch=Path({str(tmp_path)!r}))"
    )
    child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})
    while child.poll() is None and not (tmp_path / "fit.safetensors").exists():
        time.sleep(0.002)
    time.sleep(0.03)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert are_equal(run(MANY_STEPS, scratch=tmp_path), run(MANY_STEPS))


def test_a_damaged_checkpoint_or_one_of_another_fit_is_not_used(tmp_path, whole):
    with pytest.raises(Killed):
        run(scratch=tmp_path, stop_at=30, name="another stream")
    assert are_equal(run(scratch=tmp_path), whole)
    (tmp_path / "fit.safetensors").write_bytes(b"torn")
    assert are_equal(run(scratch=tmp_path), whole)


def test_no_flipped_bit_and_no_missing_end_of_a_checkpoint_is_read(tmp_path):
    with pytest.raises(Killed):
        run(scratch=tmp_path, stop_at=30)
    file = tmp_path / "fit.safetensors"
    data, identity = file.read_bytes(), identity_in(file)
    assert checkpoint.load(file, identity)[0] == 30
    rng = np.random.default_rng(0)
    for position in [0, 9, len(data) - 1, *rng.integers(0, len(data), 200)]:
        flipped = bytearray(data)
        flipped[position] ^= 1 << rng.integers(8)
        file.write_bytes(flipped)
        assert checkpoint.load(file, identity) is None
    for size in [0, 7, 64, *rng.integers(0, len(data), 20)]:
        file.write_bytes(data[:size])
        assert checkpoint.load(file, identity) is None


def test_the_checkpoint_of_a_fit_of_other_rows_is_not_used(tmp_path, whole):
    ours, theirs = tmp_path / "key of our rows", tmp_path / "key of their rows"
    with pytest.raises(Killed):  # equal but for its rows, and so for the key that is the folder's name
        run(scratch=theirs, stop_at=30, weights=np.linspace(0, 2, ROWS))
    ours.mkdir()
    (ours / "fit.safetensors").write_bytes((theirs / "fit.safetensors").read_bytes())
    minibatches = []
    assert are_equal(run(scratch=ours, minibatches=minibatches), whole)
    assert len(minibatches) == 60


def test_a_fit_reports_its_steps():
    reported = []
    ctx = Context(RandomStream(("fit",)), progress=lambda done, total: reported.append((done, total)))
    trainer.fit(noisy_regression(), replace(ALL_SETTINGS, steps=3), ctx, None)
    assert reported == [(1, 3), (2, 3), (3, 3)]


def test_a_fit_does_not_change_torchs_random_state(whole):
    before = torch.get_rng_state()
    assert are_equal(run(), whole)
    assert torch.equal(torch.get_rng_state(), before)


def shared_by_threads(stop_at=None):
    """A loss whose noise the trainer draws, and whose chunks two threads compute."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((ROWS, D))).float()
    with trainer.seed_torch(RandomStream(("init",))):
        network = nn.Sequential(nn.Linear(D, 16), nn.Tanh(), nn.Linear(16, 1))
    calls = iter(range(10**9))

    def loss(indices, noise):
        if next(calls) == stop_at:
            raise Killed
        return (network(x[indices] + noise)[:, 0] - x[indices].sum(1)).square()

    return TrainingProblem(network, loss, np.ones(ROWS), threads=2, noise=lambda n: 0.1 * torch.randn(n, D))


def test_threads_that_share_a_minibatch_and_its_noise_continue_to_the_same_bits(tmp_path):
    def run_threads(scratch=None, stop_at=None, name="fit"):
        return trainer.fit(shared_by_threads(stop_at), ALL_SETTINGS, context(name, scratch), None)

    whole = run_threads()
    with pytest.raises(Killed):
        run_threads(tmp_path, stop_at=61)
    assert are_equal(run_threads(tmp_path), whole)
    assert not are_equal(run_threads(name="another"), whole)


def test_other_streams_give_other_models(whole):
    assert not are_equal(run(name="another"), whole)


def test_the_pause_between_checkpoints_changes_no_bit(tmp_path, whole):
    assert are_equal(run(replace(ALL_SETTINGS, checkpoint_seconds=0.01), scratch=tmp_path), whole)


def test_every_row_is_used_once_per_epoch():
    minibatches = []
    run(TrainingSettings(epochs=8, batch_size=20), minibatches=minibatches)
    assert all(len(minibatch) == 20 for minibatch in minibatches)
    epochs = np.concatenate(minibatches).reshape(8, ROWS)
    assert all(np.array_equal(np.sort(epoch), np.arange(ROWS)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])


def test_row_weights_multiply_the_loss():
    values, weights = np.repeat([0.0, 1.0], 20), np.repeat([0.5, 1.5], 20)
    settings = TrainingSettings(steps=250, batch_size=40, learning_rate=0.03)
    weighted, plain = (
        trainer.fit(mean_estimation(w, values), settings, context(), None)["weight"].item() for w in (weights, np.ones(40))
    )
    assert weighted == pytest.approx(0.75, abs=1e-3)
    assert plain == pytest.approx(0.5, abs=1e-3)  # the result without weights


def test_micro_batches_give_the_gradient_of_the_whole_minibatch():
    problem = mean_estimation(np.repeat([0.5, 1.5], 20), np.arange(40.0))
    settings, init = TrainingSettings(steps=3, batch_size=30), {"weight": np.zeros((1, 1))}
    whole, pieces = (trainer.fit(replace(problem, micro_batch=k), settings, context(), init) for k in (None, 7))
    assert pieces["training/loss"] == pytest.approx(whole["training/loss"], rel=1e-5)
    assert pieces["weight"] == pytest.approx(whole["weight"], rel=1e-5)


def test_cudnn_stays_enabled_in_a_fit():
    states, problem = [], mean_estimation(np.ones(40), np.full(40, 9.0))

    def loss(*chunk):
        return (states.append(torch.backends.cudnn.enabled), problem.loss(*chunk))[1]

    trainer.fit(replace(problem, loss=loss), TrainingSettings(steps=1), context(), None)
    assert states == [torch.backends.cudnn.enabled]


def test_a_fit_can_continue_from_another_models_parameters(whole):
    frozen = TrainingSettings(steps=1, learning_rate=1e-12)
    assert np.allclose(run(frozen, init=whole)["4.weight"], whole["4.weight"], atol=1e-9)
    assert not np.allclose(run(frozen)["4.weight"], whole["4.weight"], atol=1e-3)


def test_an_initial_model_of_other_shapes_is_refused(whole):
    with pytest.raises(SpecError, match=r"init_from: array '0.weight' is \(3, 3\); expected \(16, 6\)"):
        run(init={**whole, "0.weight": np.zeros((3, 3))})
    with pytest.raises(SpecError, match=r"init_from: array '9.weight' is \(2,\); expected none"):  # of a deeper network
        run(init={**whole, "9.weight": np.zeros(2)})


@pytest.mark.parametrize("step", [0, 55])
def test_a_loss_that_is_not_finite_ends_the_chain(step):
    network = nn.Linear(1, 1)
    calls = iter(range(1000))

    def loss(indices):
        return network(torch.ones(len(indices), 1))[:, 0] * (float("nan") if next(calls) == step else 1.0)

    with pytest.raises(ChainEndedError, match="diverged"):
        trainer.fit(TrainingProblem(network, loss, np.ones(8)), TrainingSettings(steps=60, batch_size=4), context(), None)


def test_params_describe_their_fit(whole):
    assert int(whole["training/steps"]) == 60
    assert int(whole["training/rows"]) == 60 * 16
    assert whole["training/loss"].shape == (60,)
    assert whole["training/loss"][-10:].mean() < whole["training/loss"][:10].mean()


def test_bfloat16_agrees_roughly_and_parameters_stay_float32():
    plain, short = (run(TrainingSettings(steps=40, precision=p)) for p in ("float32", "bfloat16"))
    assert short["0.weight"].dtype == np.float32
    assert not are_equal(plain, short)
    assert np.allclose(plain["0.weight"], short["0.weight"], atol=0.02)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_context_records_what_computed_the_numbers(precision):
    ctx, device = context(), trainer.device().type
    params = trainer.fit(noisy_regression(), TrainingSettings(steps=1, precision=precision), ctx, None)
    trainer.load_network(lambda: noisy_regression().network, params, ctx.child("sample"), "sampling")
    assert ctx.backends == {"training": f"torch {device} {precision}", "sampling": f"torch {device} float32"}
