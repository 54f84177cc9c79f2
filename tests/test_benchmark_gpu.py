"""benchmarks/gpu.py at a size for a processor: the same code as on a GPU, whose numbers it cannot give."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the benchmark itself is run")


@pytest.fixture
def main():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield runpy.run_path(str(SCRIPT))["main"]
    torch.set_num_threads(before)


@pytest.mark.slow
def test_every_part_prints_its_numbers(main, capsys):
    assert main(["--device", "cpu", "--tiny"]) == 0
    text = capsys.readouterr().out
    assert "their numbers mean nothing" in text.splitlines()[0]
    assert len(re.findall(r"^  tiny (?:9M|12M|126M) ", text, re.MULTILINE)) == 7
    assert not re.search(r"(?<!tiny )\b\d+M\b|\d h\b", text)
    assert len(re.findall(r"tokens/s, [1-9]\d+ operations per step, [\d.]+% of the measured peak", text)) == 5
    assert len(re.findall(r"tokens/s in 4 slots, [\d.]+% of the measured memory bandwidth", text)) == 2
    assert len(re.findall(r"(replace|accumulate): cross-entropy \[[\d.]+, [\d.]+\]", text)) == 2


def test_a_part_that_fails_or_has_no_time_left_is_named_and_the_others_run(main, capsys, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no kernel image")

    for part in ("measure_training", "measure_sampling", "compare_policies"):
        monkeypatch.setitem(main.__globals__, part, fail)
    assert main(["--device", "cpu", "--tiny"]) == 1
    text = capsys.readouterr().out
    assert text.count("failed: RuntimeError: no kernel image") == 8
    assert "TFLOP/s" in text
    monkeypatch.setitem(main.__globals__, "LIMIT_S", 4)
    assert main(["--device", "cpu", "--tiny"]) == 1
    assert capsys.readouterr().out.count("TimeUpError: no time is left") == 10


def test_hours_are_those_of_the_measured_speeds(main, capsys):
    speeds = dict.fromkeys(("12M", "126M"), 470e6 / 3600)  # a corpus per hour
    main.__globals__["extrapolate"](main.__globals__["Setup"]("cuda", False, trained=speeds, sampled=speeds))
    line = "  126M: training 19.00 h + sampling 7.00 h = 26.00 h (floor 3.6 h, goal 6 h; extrapolated)"
    assert line in capsys.readouterr().out.splitlines()


def test_without_a_gpu_its_device_is_refused_and_models_of_full_size_are(main, capsys):
    with pytest.raises(SystemExit):
        main(["--device", "cpu"])
    assert "--device cpu: the models are too large for a processor. Add --tiny" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([])
    assert "--device cuda: got a machine without a GPU" in capsys.readouterr().err
