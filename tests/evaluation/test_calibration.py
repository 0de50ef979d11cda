"""Coverage of intervals: exact for a distribution that is known, and what print, file, figure and report say."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import ndtr, ndtri
from torch import Tensor, nn

import quickstudy as qs
from quickstudy.base import seeds
from quickstudy.errors import ConfigError, FileFormatError, NonFiniteError
from quickstudy.evaluation.amount import Amount
from quickstudy.evaluation.measures.intervals import AtSize
from quickstudy.experiments.evaluate_run import evaluate_run
from quickstudy.learner import Batch, Episode, Learner, Theta
from quickstudy.report.sections.intervals import conclusion
from quickstudy.report.writing import write_report

PROTOCOL = qs.Protocol("CNP", "sinusoid", "test", None, 10, 50, "coverage of intervals", 400, 1, False, "none")


@dataclass(frozen=True, eq=False)
class Noise:
    """y = level + noise of standard deviation 1, a level for each task."""

    shots: int = 4
    queries: int = 25

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episode:
        count = self.shots + self.queries
        x, noise = torch.zeros(n, count, 1), torch.randn(n, count, 1, generator=generator)
        y = 10 * torch.randn(n, 1, 1, generator=generator) + noise
        cut = self.shots
        return Episode(Batch(x[:, :cut], y[:, :cut]), Batch(x[:, cut:], y[:, cut:]))


@dataclass(frozen=True, eq=False)
class Bayes(Learner):
    """The exact answer to `Noise` under a flat prior, N(mean of n points, 1 + 1 / n), its deviation times `times`."""

    times: float = 1.0
    std_factors: tuple[float, ...] = ()

    def init(self) -> Theta:
        return {}

    def adapt(self, theta: Theta, support: Batch) -> Tensor:
        times = self.times * (self.std_factors[len(support.y)] if self.std_factors else 1)
        return torch.stack([support.y.mean(), torch.tensor(times * math.sqrt(1 + 1 / len(support.y)))])

    def predict(self, theta: Theta, phi: Tensor, x: Tensor) -> Tensor:
        return phi[0] + 0 * x

    def distribution(self, theta: Theta, phi: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return phi[0] + 0 * x, phi[1] + 0 * x

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        return torch.zeros(())


@pytest.mark.parametrize("times", [1.0, 0.5, 2.0])
def test_the_coverage_of_a_known_gaussian_is_exact_to_sampling_error(times):
    found = qs.interval_coverage(qs.Trained(Bayes(times), {}), Noise(), episodes=400, levels=(0.5, 0.9, 0.95))
    assert [one.points for one in found.sizes] == [1, 2, 3, 4]
    for level in found.levels:
        true = 2 * ndtr(times * ndtri(0.5 + level / 2)) - 1
        for share in found.coverage(level).values():
            error = share.interval / 1.96  # over episodes: the values of a task are not independent
            assert error < 0.015 and abs(share.mean - true) < 4.5 * error
    for one in found.sizes:
        variance = 1 + 1 / one.points
        expected = 0.5 * math.log(2 * math.pi * variance * times**2) + 0.5 / times**2
        assert one.negative_log_likelihood.mean == pytest.approx(expected, abs=4 * one.negative_log_likelihood.interval)
        assert one.std.mean == pytest.approx(times * math.sqrt(variance), rel=1e-5)
        assert one.error.mean == pytest.approx(variance, abs=4 * one.error.interval)


def test_the_values_are_those_that_predict_interval_holds():
    """One episode by hand, through the predictor."""
    learner = qs.CNP(nn.Flatten(), 1, representation=8)
    trained, tasks = qs.Trained(learner, learner.init()), qs.tasks.sinusoid("test", shots=5, queries=20)
    found = qs.interval_coverage(trained, tasks, episodes=2, seed=7, levels=(0.8,), points=(3,))
    shares = []
    for i in range(2):
        support, query = tasks.sample(1, seeds.generator(7, "test", i))
        low, high = trained.adapt(support.x[0, :3], support.y[0, :3]).predict_interval(query.x[0], 0.8)
        shares.append(float(((query.y[0] >= low) & (query.y[0] <= high)).double().mean()))
    assert found[3].coverage[0].mean == pytest.approx(np.mean(shares), abs=1e-12)


def test_the_points_looked_at_are_those_that_training_knows():
    tasks = qs.tasks.sinusoid("test", shots=7)
    for fewest, points in ((0, [0, 1, 2, 3, 5, 7]), (3, [3, 5, 7]), (99, [7])):
        learner = qs.CNP(nn.Flatten(), 1, representation=8, fewest=fewest)
        found = qs.interval_coverage(qs.Trained(learner, learner.init()), tasks, episodes=2)
        assert [one.points for one in found.sizes] == points
    done: list[int] = []
    qs.interval_coverage(qs.Trained(Bayes(), {}), Noise(), episodes=30, progress=done.append)
    assert sum(done) == 30


@pytest.mark.parametrize("times", [0.5, 2.0])
def test_recalibration_finds_the_factor_that_is_missing(times):
    trained = qs.recalibrated(qs.Trained(Bayes(times), {}), Noise(), episodes=2000, seed=2, points=(1, 2, 4))
    factors = np.array(trained.learner.std_factors)
    assert factors.shape == (5,) and factors[0] == factors[1] and factors[3] == factors[[2, 4]].mean()
    np.testing.assert_allclose(factors, 1 / times, rtol=0.04)
    for share in qs.interval_coverage(trained, Noise(), episodes=400).coverage(0.9).values():
        assert abs(share.mean - 0.9) < 2 * share.interval
    again = qs.recalibrated(trained, Noise(), episodes=2000, seed=2, points=(1, 2, 4))
    assert again.learner.std_factors == trained.learner.std_factors  # from the plain deviations, not on top


@dataclass(frozen=True, eq=False)
class Heavy(Noise):
    """Laplace noise, whose quantiles have other ratios than a Gaussian's: each level has a factor of its own."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episode:
        u = torch.rand(n, self.shots + self.queries, 1, generator=generator) - 0.5
        y = -u.sign() * (1 - 2 * u.abs()).log()
        support, query = y.split([self.shots, self.queries], 1)
        return Episode(Batch(0 * support, support), Batch(0 * query, query))


@dataclass(frozen=True, eq=False)
class Standard(Bayes):
    """N(0, times^2), whatever it was shown."""

    def adapt(self, theta: Theta, support: Batch) -> Tensor:
        return torch.tensor([0.0, self.std_factors[len(support.y)] if self.std_factors else 1.0])


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_recalibration_is_for_the_level_that_is_asked(level):
    """|y| <= q with probability 1 - exp(-q), so factor = -log(1 - level) / z."""
    trained = qs.recalibrated(qs.Trained(Standard(), {}), Heavy(), episodes=2000, seed=2, level=level, points=(4,))
    wanted = -math.log(1 - level) / float(ndtri(0.5 + level / 2))
    assert trained.learner.std_factors[4] == pytest.approx(wanted, rel=0.03)
    share = qs.interval_coverage(trained, Heavy(), episodes=400, points=(4,), levels=(level,)).coverage(level)[4]
    assert abs(share.mean - level) < 2 * share.interval


@pytest.mark.parametrize("learner", [qs.CNP(nn.Flatten(), 1), qs.ANP(nn.Flatten(), 1, latent=2, samples=4)])
def test_factors_stretch_the_deviations_and_nothing_else(learner, tmp_path):
    theta, tasks = learner.init(), qs.tasks.sinusoid("val", shots=3)
    support, query = (Batch(b.x[0], b.y[0]) for b in tasks.sample(1, seeds.generator(0, "test")))
    wide = dataclasses.replace(learner, std_factors=(4.0, 3.0, 2.0))
    for points, factor in ((0, 4.0), (1, 3.0), (2, 2.0), (3, 2.0)):
        few = Batch(support.x[:points], support.y[:points])
        mean, std = learner.distribution(theta, learner.adapt(theta, few), query.x)
        other = wide.distribution(theta, wide.adapt(theta, few), query.x)
        torch.testing.assert_close(other.mean, mean, rtol=0, atol=0)
        torch.testing.assert_close(other.std, factor * std)
    losses = []
    for each in (learner, wide):
        torch.manual_seed(0)
        losses.append(each.meta_loss(theta, Episode(support, query)))
    assert torch.equal(*losses)
    predictor = qs.Trained(wide, theta).adapt(*support)
    predictor.save(tmp_path / "wide.qs")
    low, high = qs.load(tmp_path / "wide.qs", encoder=nn.Flatten()).predict_interval(query.x)
    torch.testing.assert_close(high - low, 2 * float(ndtri(0.95)) * 2.0 * std)


def test_recalibration_refuses_what_it_cannot_do():
    sinusoids, bayes = qs.tasks.sinusoid("val"), qs.Trained(Bayes(), {})
    maml = qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss, lr=0.01)
    with pytest.raises(ConfigError, match="values alone"):
        qs.recalibrated(qs.Trained(maml, maml.init()), sinusoids)
    with pytest.raises(ConfigError, match="level"):
        qs.recalibrated(bayes, Noise(), level=1.0)
    with pytest.raises(ConfigError, match="from 1 to the 4"):
        qs.recalibrated(bayes, Noise(), points=(9,))
    with pytest.raises(ConfigError, match="std_factors are above 0"):
        qs.CNP(nn.Flatten(), 1, std_factors=(0.0,))


def test_wrong_settings_and_values_are_refused():
    trained = qs.Trained(Bayes(), {})
    learner = qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss, lr=0.01)
    with pytest.raises(ConfigError, match="MAML answers with values alone"):
        qs.interval_coverage(qs.Trained(learner, learner.init()), qs.tasks.sinusoid())
    with pytest.raises(ConfigError, match="at least 2"):
        qs.interval_coverage(trained, Noise(), episodes=1)
    with pytest.raises(ConfigError, match="between 0 and 1, got 90"):
        qs.interval_coverage(trained, Noise(), levels=(90,))
    for points in ((0,), (5,), ()):
        with pytest.raises(ConfigError, match="from 1 to the 4 that the tasks have"):
            qs.interval_coverage(trained, Noise(), points=points)
    with pytest.raises(NonFiniteError, match="episode 0"):
        qs.interval_coverage(qs.Trained(Bayes(math.nan), {}), Noise(), episodes=2)
    with pytest.raises(ConfigError, match=r"0\.7 was not measured"):
        found(0.9).coverage(0.7)


# --- the value -------------------------------------------------------------------------------------------------------


def around(mean: float, half: float) -> Amount:
    return Amount(mean, mean - half, mean + half)


def found(*shares: float) -> qs.Calibration:
    """Coverage of 90 % intervals, by 1, 2, ... support points; that of 50 % ones is right."""
    spread = around(1.25, 0.1)
    sizes = [
        AtSize(i, (around(0.5, 0.01), around(share, 0.01)), spread, spread, spread) for i, share in enumerate(shares, 1)
    ]
    return qs.Calibration((0.5, 0.9), tuple(sizes), PROTOCOL)


def test_a_calibration_survives_json_and_prints_as_a_table():
    one = found(0.874, 0.91)
    assert qs.Calibration.from_dict(json.loads(json.dumps(one.to_dict(), allow_nan=False))) == one
    lines = str(one).splitlines()
    earlier = one.to_dict()
    earlier["sizes"] = [
        {"points": s.points, "coverage": [[a.mean, a.interval] for a in s.coverage]}
        | {kind: [1.25, 0.1] for kind in ("negative_log_likelihood", "std", "error")}
        for s in one.sizes
    ]
    assert str(qs.Calibration.from_dict(earlier)) == str(one)  # files of earlier versions hold half widths alone
    assert lines[0].split("  ")[:1] == ["support points"] and "90 %" in lines[0]
    assert "87.4 ± 1.0" in lines[1] and "1.25 ± 0.1" in lines[1]
    assert "95 % CI over 400 episodes; 10-shot" in lines[-1]
    with pytest.raises(ValueError, match="no coverage"):
        qs.Calibration.from_dict(one.to_dict() | {"levels": [0.5]})


def test_the_figure_is_written(tmp_path):
    one = found(0.8, 0.9, 0.95)
    one.plot(tmp_path / "figure.png")
    one.plot(tmp_path / "figure.svg")
    assert np.asarray(Image.open(tmp_path / "figure.png").convert("L")).std() > 5
    assert "3 points" in (tmp_path / "figure.svg").read_text()
    with pytest.raises(ConfigError, match=r"\.png"):
        one.plot(tmp_path / "figure.docx")


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ((0.91,), "After 1 support point 90 % intervals hold 91.0 % of the values: they keep their promise."),
        ((0.8, 0.9), "they hold from 80.0 % to 90.0 %, farthest off at 1."),
        ((0.9, 0.95), "95.0 % of the values: too wide."),
        ((0.9, 0.7), "70.0 % of the values: too narrow, the learner is surer than it should be."),
    ],
)
def test_the_conclusion_follows_the_numbers(shares, said):
    assert said in conclusion(found(*shares))


def test_few_tasks_are_not_concluded_from():
    one = found(0.9, 0.85)
    sizes = [dataclasses.replace(s, coverage=tuple(around(a.mean, 0.06) for a in s.coverage)) for s in one.sizes]
    assert "too few tasks to tell" in conclusion(dataclasses.replace(one, sizes=tuple(sizes)))


# --- in a run --------------------------------------------------------------------------------------------------------


def test_a_run_keeps_coverage_and_embeddings_and_the_report_shows_them(tmp_path):
    tasks, learner = qs.tasks.sinusoid("train", shots=5), qs.CNP(nn.Flatten(), 1, representation=8)
    settings: dict[str, Any] = {"iterations": 2, "meta_batch": 2, "engine": "loop", "progress": False}
    trained = qs.train(learner, tasks, out=tmp_path, **settings)
    test = dataclasses.replace(tasks, split="test")
    evaluate_run(tmp_path, trained, test, episodes=12, engine="loop", progress=False, names=[])
    kept = qs.Calibration.from_dict(json.loads((tmp_path / "calibration.json").read_text()))
    assert kept.protocol.episodes == 12 and [one.points for one in kept.sizes] == [0, 1, 2, 3, 5]
    page = write_report([tmp_path]).read_text()
    assert "Are the intervals calibrated?" in page and conclusion(kept).split(":")[0] in page
    assert "What tasks look like to the learner" in page and "by amplitude" in page and "by phase" in page
    (tmp_path / "calibration.json").write_text('{"levels": [0.9], "sizes": []}')
    with pytest.raises(FileFormatError, match=r"calibration.json.*quickstudy evaluate"):
        write_report([tmp_path])


class Uneven:
    """Tasks of `Noise` with 8 support points, but from the 26th on with 2: a later block is smaller than the first."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> list[Episode]:
        assert n == 1 and generator is not None
        drawn = Noise(shots=8).sample(1, generator)
        short = generator.initial_seed() in LATE
        one = Episode(*(Batch(*(t[0] for t in batch)) for batch in drawn))
        return [one._replace(support=Batch(*(t[:2] for t in one.support))) if short else one]


LATE = {seeds.generator(1, "test", i).initial_seed() for i in range(25, 50)}


def test_coverage_after_more_points_than_a_later_task_has_is_refused():
    with pytest.raises(ConfigError, match="from 1 to the 2 that the tasks have, got 8"):
        qs.interval_coverage(qs.Trained(Bayes(), {}), Uneven(), episodes=50, points=[8])
    assert list(qs.interval_coverage(qs.Trained(Bayes(), {}), Uneven(), episodes=25, points=[8]).coverage(0.9)) == [8]
    sizes = [one.points for one in qs.interval_coverage(qs.Trained(Bayes(), {}), Uneven(), episodes=50).sizes]
    assert max(sizes) == 2


def test_points_are_measured_in_rising_order_whatever_the_order_they_are_asked_in():
    """Factors between them are interpolated, and the conclusion is about the most."""
    trained, asked = qs.Trained(Bayes(2.0), {}), {"episodes": 50, "seed": 2}
    one, other = (qs.recalibrated(trained, Noise(), **asked, points=points) for points in ((4, 1, 2), (1, 2, 4)))
    assert one.learner.std_factors == other.learner.std_factors
    found = qs.interval_coverage(trained, Noise(), **asked, points=(4, 1))
    assert [one.points for one in found.sizes] == [1, 4] and conclusion(found).startswith("After 4 support points")
    earlier = dataclasses.replace(found, sizes=found.sizes[::-1])  # of a file written before they were sorted
    assert conclusion(earlier) == conclusion(found)
