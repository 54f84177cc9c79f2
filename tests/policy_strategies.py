"""Hypothesis strategies for every built-in policy."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from selfloop.curators.selection import Deduplicate
from selfloop.policies.builtin import Accumulate, AccumulateReal, AccumulateSubsample, Augment, Fresh, Mix, Replace, Window
from selfloop.policies.combined import Control, Curated, Switch
from selfloop.policies.custom import Custom, FixedCounts
from selfloop.policies.cycles import Balanced, Expanding, Growing, Incremental, ReplaceMultiple

shares = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.11, 0.89))  # of 5 rows, each is a row or none by intention
ratios = st.floats(0.2, 3)
masses = st.one_of(st.none(), st.just("golden"), st.floats(0.01, 0.99))
custom = st.sampled_from(
    [
        Custom(takes=({"batch": "real(1)"}, {"batch": "synthetic(1..t-1)"})),
        Custom(takes=({"batch": "real(1)", "rows": "n // t", "weight": 2}, {"batch": "synthetic(t-1)"}), budget="n"),
        Custom(
            takes=({"batch": "real(2..t)"}, {"batch": "synthetic(max(1, t - 3)..t-1)"}), real_rows="n", synthetic_rows="2 * n"
        ),
        Custom(
            generations=(({"batch": "real(1)"},), ({"batch": "synthetic(2)", "rows": 1},)), synthetic_rows="n if t > 1 else 1"
        ),
    ]
)
STRATEGIES: dict[str, st.SearchStrategy[Any]] = {
    "replace": st.just(Replace()),
    "accumulate": st.just(Accumulate()),
    "accumulate_subsample": st.builds(AccumulateSubsample, budget=st.one_of(st.none(), st.integers(1, 60))),
    "replace_multiple": st.just(ReplaceMultiple()),
    "window": st.builds(Window, length=st.integers(1, 5)),
    "augment": st.builds(Augment, ratio=ratios),
    "mix": st.builds(Mix, real_share=shares),
    "fresh": st.builds(Fresh, ratio=ratios, real_mass=masses),
    "accumulate_real": st.builds(AccumulateReal, real_share=shares),
    "balanced": st.just(Balanced()),
    "incremental": st.builds(Incremental, replaced_share=shares),
    "expanding": st.builds(Expanding, ratio=ratios),
    "growing": st.builds(Growing, exponent=st.floats(-1, 1)),
    "fixed_counts": st.builds(
        lambda real, synthetic, more: FixedCounts(
            real_rows=real, synthetic_rows=synthetic, sampled_rows=None if more is None else synthetic + more
        ),
        st.integers(0, 5),
        st.integers(1, 40),
        st.one_of(st.none(), st.integers(0, 9)),
    ),
    "custom": custom,
}
others = st.one_of(*STRATEGIES.values())
first_or_newest = st.one_of(
    *(STRATEGIES[name] for name in ("accumulate", "accumulate_real", "mix", "fresh", "balanced", "window"))
)
STRATEGIES["switch"] = st.builds(Switch, of=others, to=first_or_newest, at=st.integers(2, 12))  # `to` never without any row
STRATEGIES["curated"] = st.builds(Curated, of=others, curators=st.just((Deduplicate(),)))
STRATEGIES["control"] = st.builds(Control, of=others, rows=st.sampled_from(["fresh", "initial"]))
policies = st.one_of(*STRATEGIES.values())
