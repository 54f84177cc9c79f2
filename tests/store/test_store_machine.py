"""The state machine of the store, and that it finds a store that gives wrong rows."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from store_machine import StoreMachine

import tiny_components
from selfloop.spec.spec import Spec
from selfloop.store.folder import StoreFolder

SPEC = tiny_components.tiny_spec(policies=("replace", "accumulate"), generations=3, n=5)


def check_store(spec: Spec, examples: int, actions: int) -> None:
    """Runs of a spec have the same rows whatever happens to the files: `actions` at a time, in `examples` orders."""
    machine = type("Store", (StoreMachine,), {"spec": spec, "expected": {}})
    budget = settings(
        max_examples=examples, stateful_step_count=actions, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    )  # fmt: skip
    run_state_machine_as_test(machine, settings=budget)


def test_a_store_gives_the_same_rows_whatever_happens_to_it() -> None:
    check_store(SPEC, examples=3, actions=5)


@pytest.mark.slow
def test_a_store_gives_the_same_rows_whatever_happens_to_it_in_many_orders() -> None:
    check_store(SPEC, examples=10, actions=12)


class Machine(StoreMachine):
    """The machine of the tiny experiment."""

    spec = SPEC
    expected = {}  # noqa: RUF012  # rows that all machines of the class share


@pytest.mark.parametrize("trusts", [False, True])
def test_a_store_that_trusts_damaged_objects_is_found(monkeypatch: pytest.MonkeyPatch, trusts: bool) -> None:
    machine = Machine()
    machine.run(1)
    for file in machine.store.rglob("*.safetensors"):
        data = file.read_bytes()
        file.unlink()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    if trusts:
        monkeypatch.setattr(StoreFolder, "is_intact", lambda folder, content: True)
        with pytest.raises(AssertionError):
            machine.run_and_verify(2)
    else:
        machine.run_and_verify(2)
    machine.teardown()
