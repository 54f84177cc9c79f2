"""selfloop: a laboratory for generative models that train on their own output.

The names in `__all__` are the public interface, with `selfloop.testing`. All other modules are private and may change.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfloop.columns import Columns as Columns
    from selfloop.columns import ColumnType as ColumnType
    from selfloop.columns import Params as Params
    from selfloop.columns import Ragged as Ragged
    from selfloop.component import Component as Component
    from selfloop.component import Context as Context
    from selfloop.component import Criterion as Criterion
    from selfloop.component import Family as Family
    from selfloop.component import Metric as Metric
    from selfloop.component import Policy as Policy
    from selfloop.component import Sampler as Sampler
    from selfloop.component import Source as Source
    from selfloop.curator import Curator as Curator
    from selfloop.curator import CuratorView as CuratorView
    from selfloop.curator import Judged as Judged
    from selfloop.curator import Score as Score
    from selfloop.engine.run import iter_measurements as iter_measurements
    from selfloop.errors import ChainEndedError as ChainEndedError
    from selfloop.errors import DataError as DataError
    from selfloop.errors import SelfloopError as SelfloopError
    from selfloop.errors import SettingError as SettingError
    from selfloop.errors import SpecError as SpecError
    from selfloop.result import Result as Result
    from selfloop.result import run as run
    from selfloop.rng import RandomStream as RandomStream
    from selfloop.settings import Settings as Settings
    from selfloop.snapshots import Scenario as Scenario
    from selfloop.snapshots import Snapshot as Snapshot
    from selfloop.spec.parse import read_spec as read_spec
    from selfloop.spec.spec import Spec as Spec
    from selfloop.theory.advice import Advice as Advice
    from selfloop.theory.advice import advise as advise
    from selfloop.theory.moments import predict as predict
    from selfloop.transforms import Encoder as Encoder
    from selfloop.transforms import FeatureExtractor as FeatureExtractor
    from selfloop.types import Batch as Batch
    from selfloop.types import Measurement as Measurement
    from selfloop.types import NewRows as NewRows
    from selfloop.types import Plan as Plan
    from selfloop.types import RowTake as RowTake
    from selfloop.types import Take as Take
    from selfloop.types import TrainingRows as TrainingRows
    from selfloop.types import Verdict as Verdict
    from selfloop.types import real as real
    from selfloop.types import synthetic as synthetic

__version__ = "0.10.1"
# The imports above are for type checkers. A name is imported when it is used: `import selfloop` takes a few milliseconds.
_MODULE_OF = {name: module for module, name in re.findall(r"from (\S+) import (\w+) as", Path(__file__).read_text("utf-8"))}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'selfloop' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__", "testing"]
