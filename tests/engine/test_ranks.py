"""Processes of torchrun that fit and sample together: the same bits as one process, and no process that stays."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfloop.component import Context
from selfloop.errors import SelfloopError, SettingError, SpecError
from selfloop.families.nn import trainer
from selfloop.families.nn.settings import TrainingSettings
from selfloop.formats.safetensors import read_safetensors
from selfloop.ranks import LED, Ranks
from selfloop.result import run
from selfloop.rng import RandomStream
from selfloop.store.identity import identity
from tiny_components import KDE, environment, results_of
from tiny_language_models import TEXTS, save_base

LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
COMMON = 'n = 20\nholdout = 10\ngenerations = 2\nseeds = 1\npolicies = ["replace"]\n'
VAE = f"""
{COMMON}source.name = "digits"
metrics = ["pixel_std"]
[family]
name = "vae"
latent = 2
hidden = 8
training = {{ steps = 5, batch_size = 9, shares = 4, ema_decay = 0.9 }}
"""  # shares of 3, 2, 2 and 2 rows
LONG = VAE.replace("steps = 5", "steps = 500").replace("generations = 2", "generations = 1")
SPECS = {
    "vae": VAE,
    "image_diffusion": f"""
{COMMON.replace("20", "70")}source.name = "digits"
metrics = ["pixel_std"]
[family]
name = "image_diffusion"
channels = [8, 8]
sampler.steps = 2
training = {{ steps = 3, batch_size = 8, shares = 2 }}
""",  # samples are two blocks
    "transformer": f"""
{COMMON}source.name = "python_docs"
metrics = ["cross_entropy"]
[family]
name = "transformer"
layers = 1
hidden = 8
heads = 2
context = 16
vocab = 300
dropout = 0.1
sampler = {{ batch_size = 1, max_tokens = 8 }}
training = {{ steps = 4, batch_size = 8, shares = 2 }}
""",
    "finetune": f"""
{COMMON.replace("20", "12")}source = {{ name = "jsonl", path = "texts.jsonl" }}
metrics = ["cross_entropy"]
[family]
name = "finetune"
base_model = "base"
context = 40
sampler = {{ batch_size = 4, max_tokens = 20 }}
training = {{ steps = 3, batch_size = 6, shares = 2, learning_rate = 1e-3 }}
""",
}


DIVIDED = SPECS["finetune"].replace("[family]", '[family]\nsharding = "model"')


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with the specs, and with a store of each that two ranks filled."""
    folder = tmp_path_factory.mktemp("ranks")
    before = Path.cwd()
    os.chdir(folder)
    save_base(Path("base"), arch="gpt_neox")  # transformers' own `generate` samples from it
    Path("texts.jsonl").write_text("".join(json.dumps({"text": f"{i} {text}"}) + "\n" for i, text in enumerate(TEXTS * 2)))
    for name, spec in (*SPECS.items(), ("divided", DIVIDED)):
        Path(f"{name}.toml").write_text(spec)
    script = str(Path(__file__).parent / "rank_script.py")
    runs = [f"{name}={name}.toml" for name in (*SPECS, "divided")] + ["wrong=vae.toml"]
    done = subprocess.run([*LAUNCH, script, *runs], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    yield folder
    os.chdir(before)


@pytest.mark.parametrize("family", SPECS)
def test_two_ranks_give_the_bits_of_one_process(folder: Path, family: str) -> None:
    alone, together = run(f"{family}.toml", f"alone-{family}", threads=1), run(f"{family}.toml", family, threads=1)
    assert together.usage["replace"].computed == together.shared.computed == 0, (
        "the ranks stored every step, under the same keys"
    )
    assert results_of(folder / family) == results_of(folder / f"alone-{family}")
    assert [*together.measurements] == [*alone.measurements]


def fits_of(store: Path) -> dict[str, dict[str, Any]]:
    """The arrays of every model by its key, with the backend of its training."""
    bodies = [json.loads(path.read_bytes())["body"] for path in (store / "records").rglob("*.json")]
    models = {body["key"]: body for body in bodies if "training" in body["provenance"]["backend"]}
    files = {path.stem: path for path in (store / "objects").rglob("*.safetensors")}
    return {
        key: {**read_safetensors(files[body["result"]["object"]]), "backend": body["provenance"]["backend"]["training"]}
        for key, body in models.items()
    }


def test_a_network_that_ranks_divide_has_the_same_key_another_backend_and_nearly_the_same_arrays(folder: Path) -> None:
    whole, divided = (fits_of(folder / name) for name in ("finetune", "divided"))
    key = next(iter(whole.keys() & divided.keys()))
    assert divided[key].pop("backend") == "torch cpu float32, fsdp"
    assert whole[key].pop("backend") == "torch cpu float32"
    for name, array in whole[key].items():
        np.testing.assert_allclose(divided[key][name], array, atol=2e-4, err_msg=name)  # a step is up to 1e-3


def test_gradients_that_are_added_in_another_order_give_other_bits(folder: Path) -> None:
    wrong, right = results_of(folder / "wrong"), results_of(folder / "vae")
    assert len(wrong) == len(right)
    assert wrong != right


def test_every_share_has_random_numbers_of_its_own_that_no_rank_decides() -> None:
    seeds: list[int] = []
    network = torch.nn.Linear(1, 1)

    def loss(indices: torch.Tensor) -> torch.Tensor:
        seeds.append(torch.initial_seed())
        return network(torch.ones(len(indices), 1))[:, 0]

    settings = TrainingSettings(steps=2, batch_size=6, shares=3)
    stream = RandomStream(("fit",))
    trainer.fit(trainer.TrainingProblem(network, loss, np.ones(6)), settings, Context(stream), None)
    assert seeds == [stream.child("noise", step, share).integer() for step in range(2) for share in range(3)]


def test_one_share_is_no_part_of_the_identity_and_several_are() -> None:
    one, two = (json.dumps(identity(TrainingSettings(shares=shares))) for shares in (1, 2))
    assert "shares" not in one
    assert "shares" in two


@pytest.mark.parametrize(
    ("spec", "workers", "ranks", "problem"),
    [
        (VAE, None, 3, "family.training.shares: got 4; expected a multiple of 3, the ranks of torchrun. Change one."),
        (VAE.replace(", shares = 4", ""), 1, 2, "family.training.shares: got 1; expected a multiple of 2"),
        (VAE, 2, 2, "workers: got 2; the 2 ranks of torchrun work on one task. Leave it out."),
        (KDE, None, 2, "family.name: got kde, which one process fits; torchrun started 2. Use selfloop run."),
    ],
)
def test_what_ranks_cannot_share_is_one_sentence_before_any_work(
    tmp_path: Path, spec: str, workers: int | None, ranks: int, problem: str
) -> None:
    (tmp_path / "spec.toml").write_text(spec)
    before = LED.set(Ranks(0, ranks))
    try:
        with pytest.raises(SpecError, match=f"^{re.escape(problem)}"):
            run(tmp_path / "spec.toml", tmp_path / "store", workers=workers)
    finally:
        LED.reset(before)
    assert not (tmp_path / "store").exists()


def test_more_shares_than_rows_are_refused() -> None:
    with pytest.raises(SettingError, match=r"^shares: got 4; expected at most batch_size = 3. Change one.$"):
        TrainingSettings(batch_size=3, shares=4)
    problem = trainer.TrainingProblem(torch.nn.Linear(1, 1), lambda indices: indices, np.ones(3))
    with pytest.raises(SettingError, match=r"^family.training.shares: got 4; a minibatch has 3 rows here. Lower it.$"):
        trainer.fit(problem, TrainingSettings(shares=4), Context(RandomStream()), None)


class Deaf(Ranks):
    """A rank without others."""

    def tell(self, message: object) -> object:
        return message


def test_the_last_words_of_a_rank_are_the_sentence_of_rank_0() -> None:
    def step() -> None:
        raise RuntimeError("Connection closed by peer")

    store = torch.distributed.HashStore()
    Ranks(1, 2, store=store).leave_words(MemoryError("no memory for 8 GB.\nmore"))
    sentence = r"^torchrun: rank 1: no memory for 8 GB\. Run the same command again to continue\.$"
    with pytest.raises(SelfloopError, match=sentence):
        Deaf(0, 2, store=store).compute("fit", step, ())


def start_long_fit(folder: Path, store: str) -> subprocess.Popen[str]:
    """The command line on two ranks, after a checkpoint of its own."""
    (folder / "long.toml").write_text(LONG.replace("steps = 500", "steps = 500, checkpoint_seconds = 0"))
    command = [*LAUNCH, "-m", "selfloop", "run", "long.toml", "--store", store, "--threads", "1", "--quiet"]
    process, started = (
        subprocess.Popen(command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True),
        time.time_ns(),
    )
    while process.poll() is None and not any(
        file.stat().st_mtime_ns > started for file in (folder / store).glob("scratch/*/fit.safetensors")
    ):
        time.sleep(0.01)
    return process


def pids_of_ranks(process: subprocess.Popen[str]) -> list[int]:
    """Processes that torchrun started, rank 0 first."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return sorted(map(int, children.read_text().split()))


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


ENDS: dict[str, Callable[[subprocess.Popen[str], list[int]], None]] = {  # by the sentence that a user then sees
    "torchrun: another one of its processes ended": lambda process, ranks: os.kill(ranks[1], signal.SIGKILL),
    "": lambda process, ranks: os.kill(ranks[0], signal.SIGKILL),
    "interrupted.": lambda process, ranks: process.send_signal(signal.SIGINT),
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_all_ranks_end_together_and_one_process_continues_to_the_same_bits(tmp_path: Path) -> None:
    for sentence, end in ENDS.items():
        process = start_long_fit(tmp_path, "killed")
        ranks = pids_of_ranks(process)
        end(process, ranks)
        out, err = process.communicate(timeout=60)
        assert len(ranks) == 2
        assert process.returncode == 1
        assert [pid for pid in ranks if is_alive(pid)] == []
        sentences = [line.removeprefix("selfloop: ") for line in err.splitlines() if line.startswith("selfloop: ")]
        assert [line[: len(sentence)] for line in sentences] == [sentence] * bool(sentence)
        assert out == ""
    notes: list[str] = []
    (tmp_path / "long.toml").write_text(LONG)
    run(tmp_path / "long.toml", tmp_path / "killed", threads=1, notify=notes.append)
    run(tmp_path / "long.toml", tmp_path / "whole", threads=1)
    first = next(note for note in notes if "fit, step" in note)
    assert "fit, step 1 of" not in first, "it continues from the checkpoint of the two ranks"
    assert results_of(tmp_path / "killed") == results_of(tmp_path / "whole")
