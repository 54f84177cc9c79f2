"""selfloop: a laboratory for generative models that train on their own output."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfloop.engine.run import stream as stream
    from selfloop.result import Result as Result
    from selfloop.result import run as run
    from selfloop.spec.spec import Spec as Spec
    from selfloop.spec.spec import read_spec as read_spec

__version__ = "0.1.0"
_LAZY = {  # nothing is imported before it is used: `import selfloop` costs next to nothing
    "Result": "selfloop.result",
    "run": "selfloop.result",
    "stream": "selfloop.engine.run",
    "Spec": "selfloop.spec.spec",
    "read_spec": "selfloop.spec.spec",
    "predict": "selfloop.theory",
}
__all__ = ["Result", "Spec", "predict", "read_spec", "run", "stream"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'selfloop' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
