from dataclasses import replace

import numpy as np
import pytest

import selfloop
from law_checks import CONTEXT, curves, largest_z, training_rows
from selfloop.component import Sampler
from selfloop.errors import DataError, SettingError
from selfloop.families.agents import Agents
from selfloop.families.discrete import Discrete, DiscreteSampler
from selfloop.families.gaussian import Gaussian, GaussianSampler
from selfloop.families.gmm import Gmm
from selfloop.families.linear import Linear
from selfloop.families.transformer.family import Transformer
from selfloop.metrics.true_parameters import ExcessRisk, MeanError, VarianceRatio
from selfloop.policies.builtin import Replace
from selfloop.sources.distributions import GaussianSource, LinearSource, ZipfSource
from selfloop.sources.shapes import Blobs
from selfloop.spec.spec import Spec
from selfloop.testing import check_family

N, T, K = 12, 4, 3


def moments(shared):
    """Expected squared error of an agent's mean and expected variance, from their recursion in second moments.

    Means are m'_j = sum_k A_jk (m_k + e_k), Var e_k = variance / own rows, with A_jj = a and A_jk = b; c and d are the
    expected products of the errors of one agent's mean and of two agents' means.
    """
    a, b = 1 / (1 + shared * (K - 1)), shared / (1 + shared * (K - 1))
    c, d, variance, curve = 0.0, 0.0, 1.0, []
    for _ in range(T):
        same, both = a**2 + (K - 1) * b**2, 2 * a * b + (K - 2) * b**2
        noisy = c + variance * K / N
        new_c, new_d = same * noisy + (1 - same) * d, both * noisy + (1 - both) * d
        variance, c, d = c + variance - new_c, new_c, new_d
        curve.append((c, variance))
    return np.array(curve).T


@pytest.mark.parametrize(("shared", "other"), [(0.0, 1.0), (0.2, 0.0), (1.0, 0.0)])
def test_means_and_variances_follow_their_recursion(shared, other):
    family = Agents(agents=K, shared=shared)
    values = curves(GaussianSource(dim=1), family, Replace(), (MeanError(), VarianceRatio()), n=N, generations=T, seeds=2048)
    for name, right, wrong in zip(values, moments(shared), moments(other), strict=True):
        assert largest_z(values[name], right) < 4, name
        assert largest_z(values[name], wrong) > 4, name


def test_agents_without_shared_rows_are_chains_of_their_own():
    x = CONTEXT.stream.generator().standard_normal((10, 2))
    params = Agents(agents=2, shared=0.0).fit(training_rows(({"x": x}, None, 1.0)), CONTEXT, None)
    np.testing.assert_allclose(params["mean"], x[::2].mean(0))
    np.testing.assert_allclose(params["agent1/covariance"], np.cov(x[1::2].T, ddof=0))
    equal = Agents(agents=2, shared=1.0).fit(training_rows(({"x": x}, None, 1.0)), CONTEXT, None)
    np.testing.assert_allclose(equal["mean"], x.mean(0))
    np.testing.assert_array_equal(equal["mean"], equal["agent1/mean"])


def test_rows_are_those_of_the_agents_in_turn():
    params = {
        "mean": np.array([0.0]),
        "covariance": np.eye(1),
        "agent1/mean": np.array([100.0]),
        "agent1/covariance": np.eye(1),
    }
    x = Agents(agents=2).sample(params, 7, GaussianSampler(), {}, CONTEXT)["x"][:, 0]
    assert (x > 50).tolist() == [False, True] * 3 + [False]
    log_prob = Agents(agents=2).log_prob(params, {"x": x[:, None]})
    np.testing.assert_array_equal(log_prob, Gaussian().log_prob(params, {"x": x[:, None]}))


def test_other_families_can_be_agents_with_their_own_sampler(tmp_path):
    check_family(Agents(of=Gmm(components=2)), Blobs())
    check_family(Agents(of=Discrete(n_symbols=20)), ZipfSource(n_symbols=20))
    check_family(Agents(of=Linear()), LinearSource(dim=3))
    risk = curves(LinearSource(dim=3), Agents(of=Linear()), Replace(), (ExcessRisk(),), n=60, generations=4, seeds=64)[
        "excess_risk"
    ]
    assert risk[:, 3].mean() > 2 * risk[:, 0].mean()
    family = Agents(of=Discrete(), agents=2)
    assert isinstance(Spec(source=ZipfSource(), family=family, n=20, policies=("replace",)).sampler, DiscreteSampler)
    table = {"name": "agents", "of": {"name": "discrete", "smoothing": 0.1, "n_symbols": 50}, "agents": 2}
    spec = Spec(source=ZipfSource(n_symbols=50), family=table, sampler={"temperature": 0.8}, n=20, generations=3, seeds=3,
                policies=("replace",))  # fmt: skip
    assert np.isfinite(selfloop.run(spec, tmp_path).curves()["replace"]["nll"]).all()


def test_impossible_agents_are_refused():
    with pytest.raises(SettingError, match="of: got transformer; expected a family of ensembles with a density"):
        Agents(of=Transformer())
    with pytest.raises(SettingError, match="of: got agents; expected"):
        Agents(of=Agents())
    few = training_rows(({"x": np.zeros((2, 1))}, None, 1.0))
    with pytest.raises(DataError, match="an agent has no training rows"):
        Agents(shared=0.0).fit(few, CONTEXT, None)
    assert replace(Agents(), of=Gmm()).sampler_class is Sampler
