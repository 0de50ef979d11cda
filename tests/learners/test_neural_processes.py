"""Neural processes against the mathematics: their parts written out, and what each reduces to."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import assert_close, clusters, random_episodes
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, Normal, kl_divergence

import quickstudy as qs
from quickstudy.engine import mapping
from quickstudy.errors import ConfigError
from quickstudy.learner import Batch, Episode, Theta
from quickstudy.learners.hypernet.anp import latent, standard
from quickstudy.learners.parts.gaussian import Gaussian, divergence, moments, negative_log_likelihood
from quickstudy.learners.parts.sets import attend, attention, members, perceptron, set_means, some
from quickstudy.nn.parameters import part

pytestmark = pytest.mark.usefixtures("double")

R, WAYS = 6, 3


def cnp(**fields: Any) -> qs.CNP:
    return qs.CNP(nn.Flatten(), **{"width": 1, "representation": R, "depth": 2, "fewest": 99} | fields)


def anp(**fields: Any) -> qs.ANP:
    sizes = {"width": 1, "representation": R, "depth": 2, "heads": 2, "fewest": 99}
    return qs.ANP(nn.Flatten(), **sizes | fields)


def each(**fields: Any) -> pytest.MarkDecorator:
    """One test for each kind of process."""
    kinds = {"cnp": cnp(**fields), "anp": anp(**fields)}
    kinds |= {"self-attention": anp(self_attention=1, **fields), "latent": anp(latent=2, **fields)}
    return pytest.mark.parametrize("learner", kinds.values(), ids=kinds.keys())


def generic(learner: Any) -> Theta:
    drawn = torch.Generator().manual_seed(5)
    return {n: v + 0.3 * torch.randn(v.shape, generator=drawn) for n, v in learner.init().items()}


def one_episode(ways: int | None = None, **sizes: Any) -> Episode:
    shape = (1,) if ways is None else (4,)
    return mapping.unstack(random_episodes(1, shape, ways, **{"shots": 4, "queries": 3} | sizes))[0]


def answer(learner: Any, theta: Theta, support: Batch, x: Tensor) -> tuple[Tensor, Tensor]:
    return learner.distribution(theta, learner.adapt(theta, support), x)


def layers(parts: Theta, name: str, x: Tensor) -> Tensor:
    """A perceptron of two layers, written out."""
    hidden = (x @ parts[f"{name}.0.weight"].T + parts[f"{name}.0.bias"]).clamp(min=0)
    return hidden @ parts[f"{name}.1.weight"].T + parts[f"{name}.1.bias"]


# --- Gaussians -------------------------------------------------------------------------------------------------------


def a_gaussian(*shape: int) -> Gaussian:
    return Gaussian(torch.randn(shape), torch.rand(shape) + 0.1)


def test_negative_log_likelihood_and_divergence_are_those_of_torch():
    p, q, y = a_gaussian(4, 2), a_gaussian(4, 2), torch.randn(4, 2)
    assert_close(negative_log_likelihood(p, y), -Normal(*p).log_prob(y), 1e-12)
    assert_close(divergence(q, p), kl_divergence(Normal(*q), Normal(*p)).sum(), 1e-12)
    assert float(divergence(p, p)) == pytest.approx(0, abs=1e-15)


def test_the_moments_are_those_of_the_mixture():
    p = a_gaussian(5, 3)
    mixture = MixtureSameFamily(Categorical(torch.ones(3, 5)), Normal(p.mean.T, p.std.T))
    found = moments(p)
    assert_close(found.mean, mixture.mean, 1e-12)
    assert_close(found.std, mixture.variance.sqrt(), 1e-12)


# --- sets ------------------------------------------------------------------------------------------------------------


def test_class_sets_are_means_over_classes():
    y, values = torch.tensor([2, 0, 2, 1, 2]), torch.randn(5, R)
    found = set_means(values, members(y, 4, values))
    wanted = torch.stack([values[1], values[3], values[[0, 2, 4]].mean(0), torch.zeros(R)])
    assert_close(found, wanted, 1e-14)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=9), st.integers(0, 4), st.integers(0, 2**32))
def test_training_keeps_the_first_few_of_every_class(labels, fewest, seed):
    y = torch.tensor(labels)
    whole = members(y, 3, torch.zeros(1))
    torch.manual_seed(seed)
    kept = some(whole, fewest)
    for all_of, few in zip(whole, kept, strict=True):
        mine = all_of.nonzero()[:, 0].tolist()
        k = int(few.sum())
        assert few.nonzero()[:, 0].tolist() == mine[:k]
        assert min(fewest, len(mine)) <= k <= len(mine)


def test_every_number_of_points_is_equally_likely():
    y = torch.zeros(4, 1)
    counts = torch.stack([some(members(y, None, y), 1).sum() for _ in range(3000)]).int().bincount(minlength=5)
    assert counts[0] == 0 and counts[1:].min() > 630 and counts[1:].max() < 870  # 750 each, deviation 24


def test_no_number_is_drawn_where_there_is_no_choice():
    before = torch.get_rng_state()
    some(torch.ones(1, 4), 4)
    assert torch.equal(before, torch.get_rng_state())
    some(torch.ones(1, 4), 3)
    assert not torch.equal(before, torch.get_rng_state())


def test_under_vmap_each_task_draws_its_own_number():
    ones = torch.ones(200, 1, 8)
    kept = torch.func.vmap(lambda found: some(found, 0), randomness="different")(ones).sum((1, 2))
    assert set(kept.int().tolist()) == set(range(9))


@each()
def test_a_training_loss_is_that_of_some_first_points(learner):
    """The masked loss equals the plain one on a support set that is cut, for the same draws."""
    learner = dataclasses.replace(learner, fewest=0)
    theta, (support, query) = generic(learner), one_episode(shots=4)
    plain = dataclasses.replace(learner, fewest=99)
    found = set()
    for seed in range(12):
        torch.manual_seed(seed)
        loss = learner.meta_loss(theta, Episode(support, query))
        torch.manual_seed(seed)
        k = int((torch.rand(()) * (len(support.x) + 1)).floor())  # the draw comes first
        cut = Episode(Batch(support.x[:k], support.y[:k]), query)
        assert_close(loss, plain.meta_loss(theta, cut), 1e-12)
        found.add(k)
    assert len(found) > 3


# --- attention -------------------------------------------------------------------------------------------------------


def test_attention_is_that_of_torch():
    parts = attention("a", 5, R, torch.Generator().manual_seed(0))
    q, k, v = torch.randn(4, 5), torch.randn(7, 5), torch.randn(7, R)
    ours = attend(parts, "a", q, k, v, torch.ones(1, 7), heads=3)[0]
    split = [
        F.linear(t, parts[f"a.{n}"]).unflatten(-1, (3, -1)).transpose(0, 1)
        for t, n in ((q, "query"), (k, "key"), (v, "value"))
    ]
    theirs = F.scaled_dot_product_attention(*split).transpose(0, 1).flatten(1) @ parts["a.out"].T
    assert_close(ours, theirs, 1e-12)


def test_attention_sees_members_alone():
    parts = attention("a", 5, R, torch.Generator().manual_seed(0))
    q, k, v = torch.randn(4, 5), torch.randn(7, 5), torch.randn(7, R)
    found = members(torch.tensor([0, 2, 2, 0, 2, 0, 0]), 3, v)
    sets = attend(parts, "a", q, k, v, found, heads=2)
    for one, inside in zip(sets, found.bool(), strict=True):
        alone = attend(parts, "a", q, k[inside], v[inside], torch.ones(1, int(inside.sum())), heads=2)[0]
        assert_close(one, alone, 1e-12)
    assert not sets[1].any()  # a set without members


# --- the learners ----------------------------------------------------------------------------------------------------


def test_the_cnp_by_hand():
    learner, (support, query) = cnp(y_scale=2.0, min_std=0.05), one_episode()
    theta = generic(learner)
    parts = part(theta, "process.")
    r = torch.stack([layers(parts, "pairs", torch.cat([x, y / 2])) for x, y in zip(*support, strict=True)]).mean(0)
    m, u = layers(parts, "decoder", torch.cat([query.x, r.expand(len(query.x), R)], 1)).split(1, 1)
    s = 0.05 + (1 + u.exp()).log()
    mean, std = answer(learner, theta, support, query.x)
    assert_close(mean, 2 * m, 1e-12)
    assert_close(std, 2 * s, 1e-12)
    assert_close(learner.embed(theta, support), r, 1e-12)
    assert_close(learner.meta_loss(theta, Episode(support, query)), -Normal(m, s).log_prob(query.y / 2).mean(), 1e-12)


def test_a_class_is_judged_by_itself_and_the_mean_of_all():
    learner, (support, query) = cnp(ways=WAYS, width=4), one_episode(WAYS)
    theta = generic(learner)
    parts = part(theta, "process.") | {"process.decoder.1.bias": torch.zeros(1)}
    parts |= {"decoder.1.bias": torch.zeros(1)}
    r = torch.stack([layers(parts, "pairs", support.x[support.y == k]).mean(0) for k in range(WAYS)])
    wanted = [[layers(parts, "decoder", torch.cat([x, r[k], r.mean(0)])) for k in range(WAYS)] for x in query.x]
    logits = learner.predict(theta, learner.adapt(theta, support), query.x)
    assert_close(logits, torch.stack([torch.cat(row) for row in wanted]), 1e-12)


@pytest.mark.parametrize("ways", [None, WAYS])
def test_uniform_attention_is_the_mean_of_the_cnp(ways):
    """Queries that ask nothing, values handed on: what is left of the ANP is the CNP with the same networks."""
    width = 1 if ways is None else 4
    plain, attentive = cnp(ways=ways, width=width), anp(ways=ways, width=width)
    theta = generic(attentive)
    eye = torch.eye(R)
    theta |= {
        "process.attention.query": torch.zeros(R, R),
        "process.attention.value": eye,
        "process.attention.out": eye,
    }
    shared = {name: theta[name] for name in plain.init()}
    episode = one_episode(ways)
    answers = [
        learner.predict(at, learner.adapt(at, episode.support), episode.query.x)
        for learner, at in ((plain, shared), (attentive, theta))
    ]
    assert_close(answers[1], answers[0], 1e-12)
    assert_close(attentive.meta_loss(theta, episode), plain.meta_loss(shared, episode), 1e-12)
    assert_close(attentive.embed(theta, episode.support), plain.embed(shared, episode.support), 1e-12)


@pytest.mark.parametrize("k", [2, 5])
def test_a_point_said_k_times_is_said_once(k):
    learner, (support, query) = cnp(), one_episode(shots=1)
    theta = generic(learner)
    one = Batch(support.x[:1], support.y[:1])
    many = Batch(one.x.repeat(k, 1), one.y.repeat(k, 1))
    for a, b in zip(answer(learner, theta, many, query.x), answer(learner, theta, one, query.x), strict=True):
        assert_close(a, b, 1e-12)


@each()
def test_the_order_of_the_points_changes_nothing(learner):
    theta, (support, query) = generic(learner), one_episode()
    order = torch.randperm(len(support.x))
    shuffled = Batch(support.x[order], support.y[order])
    for a, b in zip(answer(learner, theta, shuffled, query.x), answer(learner, theta, support, query.x), strict=True):
        assert_close(a, b, 1e-10)
    assert_close(learner.embed(theta, shuffled), learner.embed(theta, support), 1e-10)
    losses = []
    for part_of in (shuffled, support):
        torch.manual_seed(0)
        losses.append(learner.meta_loss(theta, Episode(part_of, query)))
    assert_close(losses[0], losses[1], 1e-10)


@each()
def test_without_a_support_point_the_answer_is_the_prior(learner):
    theta, (support, query) = generic(learner), one_episode()
    nothing = Batch(support.x[:0], support.y[:0])
    mean, std = answer(learner, theta, nothing, query.x)
    assert torch.isfinite(mean).all() and (std > 0).all()
    predictor = qs.Trained(learner, theta).adapt(nothing.x, nothing.y)
    assert_close(predictor.predict(query.x), mean, 1e-12)
    # Not what one point at the origin says.
    assert (
        float((answer(learner, theta, Batch(torch.zeros(1, 1), torch.zeros(1, 1)), query.x)[0] - mean).abs().max())
        > 1e-6
    )


@pytest.mark.parametrize("ways", [None, WAYS])
@pytest.mark.parametrize("norm", ["batch", "support"])
@pytest.mark.parametrize("cls", [qs.CNP, qs.ANP])
def test_images_need_no_support_point_either(cls, norm, ways):
    """Batch normalisation refuses an empty batch, so the encoder must not see one."""
    encoder = qs.nn.conv4(channels=1, norm=norm, filters=4, downsample="pool", size=16)
    learner = cls(encoder, width=4, ways=ways, representation=8, heads=2) if cls is qs.ANP else cls(encoder, 4, ways)
    support, query = mapping.unstack(random_episodes(1, (1, 16, 16), ways, queries=3))[0]
    nothing = Batch(support.x[:0], support.y[:0])
    theta = learner.init()
    output = learner.predict(theta, learner.adapt(theta, nothing), query.x)
    assert output.shape == (len(query.x), ways or 1) and torch.isfinite(output).all()
    assert torch.isfinite(learner.meta_loss(theta, Episode(nothing, query)))


def test_classes_without_an_example_have_no_names():
    trained = qs.Trained(learner := cnp(ways=WAYS, width=4), learner.init())
    with pytest.raises(qs.errors.DataError, match="no example, and with it no class"):
        trained.adapt(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))


def test_other_learners_do_not_learn_from_nothing():
    trained = qs.Trained(learner := qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss), learner.init())
    with pytest.raises(qs.errors.DataError, match="holds no example"):
        trained.adapt(torch.zeros(0, 1), torch.zeros(0, 1))


@each()
def test_a_scale_of_y_is_another_unit_and_nothing_else(learner):
    """Values c times as large under a scale c times as large: c times the answer and its deviation, the same loss."""
    theta, (support, query) = generic(learner), one_episode()
    c = 40.0
    large = dataclasses.replace(learner, y_scale=c)
    times = Batch(support.x, c * support.y)
    mean, std = answer(learner, theta, support, query.x)
    assert_close(answer(large, theta, times, query.x)[0], c * mean, 1e-12)
    assert_close(answer(large, theta, times, query.x)[1], c * std, 1e-12)
    ends = qs.Trained(learner, theta).adapt(*support).predict_interval(query.x, 0.8)
    for a, b in zip(qs.Trained(large, theta).adapt(*times).predict_interval(query.x, 0.8), ends, strict=True):
        assert_close(a, c * b, 1e-12)
    torch.manual_seed(1)
    loss = learner.meta_loss(theta, Episode(support, query))
    torch.manual_seed(1)
    assert_close(large.meta_loss(theta, Episode(times, Batch(query.x, c * query.y))), loss, 1e-12)


def test_the_deviation_has_a_floor():
    learner = cnp(min_std=0.5)
    theta = generic(learner)
    theta["process.decoder.1.bias"][1:] = -1e3
    support, query = one_episode()
    assert_close(answer(learner, theta, support, query.x)[1], torch.full((len(query.x), 1), 0.5), 1e-12)


# --- the latent code -------------------------------------------------------------------------------------------------


def test_fixed_draws_come_with_their_opposites():
    noise = standard(9, 3)
    assert noise.shape == (9, 3) and torch.equal(noise, standard(9, 3))
    assert float(noise.mean(0).abs().max()) < 1e-15 and not noise[8].any()
    assert not standard(1, 3).any()
    assert float(standard(4000, 1).std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("outputs", [1, 3])
def test_the_elbo_by_hand(outputs):
    learner, (support, query) = anp(latent=2, outputs=outputs), one_episode()
    support, query = (Batch(b.x, b.y * torch.linspace(1, 2, outputs)) for b in (support, query))
    theta = generic(learner)
    parts = part(theta, "process.")

    def code(x: Tensor, y: Tensor) -> Normal:
        mean, u = layers(parts, "latent.code", layers(parts, "latent.pairs", torch.cat([x, y], 1)).mean(0)).split(2)
        return Normal(mean, 0.1 + 0.9 / (1 + (-u).exp()))

    prior = code(*support)
    posterior = code(torch.cat([support.x, query.x]), torch.cat([support.y, query.y]))
    torch.manual_seed(3)
    z = posterior.mean + posterior.stddev * torch.randn(2)
    phi = learner.adapt(theta, support)._replace(codes=z[None])
    p = Normal(*(t[0] for t in learner.draws(theta, phi, query.x)))
    wanted = -p.log_prob(query.y).mean() + kl_divergence(posterior, prior).sum() / (outputs * len(query.y))
    torch.manual_seed(3)
    assert_close(learner.meta_loss(theta, Episode(support, query)), wanted, 1e-12)
    assert_close(learner.embed(theta, support), prior.mean, 1e-12)


def test_one_sample_answers_with_the_mean_code_and_many_with_their_mixture():
    learner, (support, query) = anp(latent=2, samples=7), one_episode()
    theta = generic(learner)
    phi = learner.adapt(theta, support)
    prior = latent(part(theta, "process."), torch.cat(support, 1), torch.ones(1, len(support.x)))
    assert_close(phi.codes, prior.mean + prior.std * standard(7, 2), 1e-12)
    assert_close(learner.distribution(theta, phi, query.x).mean, learner.draws(theta, phi, query.x).mean.mean(0), 1e-12)
    single = dataclasses.replace(learner, samples=1)
    assert_close(single.adapt(theta, support).codes, prior.mean, 1e-12)


def test_answers_with_a_latent_code_are_the_same_under_vmap_and_in_a_loop():
    learner = anp(latent=2, samples=4)
    theta, episodes = generic(learner), random_episodes(4, (1,), None)
    found = [
        qs.map_tasks(lambda e: learner.predict(theta, learner.adapt(theta, e.support), e.query.x), episodes, name)
        for name in ("loop", "vmap")
    ]
    assert_close(found[1], found[0], 1e-12)


def test_the_elbo_trains_under_vmap():
    learner = anp(latent=2, fewest=0)
    loss, slope = qs.meta_gradient(learner, learner.init(), random_episodes(4, (1,), None), "vmap")
    assert torch.isfinite(loss) and all(torch.isfinite(g).all() and g.any() for g in slope.values())


# --- predictors ------------------------------------------------------------------------------------------------------


def test_an_interval_is_central_in_the_gaussian():
    learner = cnp()
    theta, (support, query) = generic(learner), one_episode()
    predictor = qs.Trained(learner, theta).adapt(*support)
    mean, std = answer(learner, theta, support, query.x)
    low, high = predictor.predict_interval(query.x.numpy(), level=0.95)
    assert_close(low, mean - 1.959963984540054 * std, 1e-9)
    assert_close((low + high) / 2, predictor.predict(query.x), 1e-12)
    inside = Normal(mean, std).cdf(high) - Normal(mean, std).cdf(low)
    assert_close(inside, torch.full_like(inside, 0.95), 1e-12)


def test_a_saved_predictor_gives_the_same_intervals(tmp_path):
    learner = anp(latent=2, self_attention=1)
    theta, (support, query) = generic(learner), one_episode()
    predictor = qs.Trained(learner, theta).adapt(*support)
    predictor.save(tmp_path / "p.qs")
    again = qs.load(tmp_path / "p.qs", encoder=nn.Flatten())
    assert isinstance(again, qs.Predictor)
    for a, b in zip(again.predict_interval(query.x), predictor.predict_interval(query.x), strict=True):
        assert torch.equal(a, b)


def test_learners_without_a_distribution_say_so():
    x, y = one_episode().support
    learner = qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss, lr=0.01)
    with pytest.raises(ConfigError, match=r"MAML answers with values alone.*cnp and anp"):
        qs.Trained(learner, learner.init()).adapt(x, y).predict_interval(x)
    classes = cnp(ways=WAYS, width=4)
    support = one_episode(WAYS).support
    with pytest.raises(ConfigError, match="classifies"):
        qs.Trained(classes, classes.init()).adapt(*support).predict_interval(support.x)
    for level in (0, 1, 90):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            qs.Trained(cnp(), cnp().init()).adapt(x, y).predict_interval(x, level)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"representation": 6, "heads": 4}, "6 is not a multiple of 4"),
        ({"latent": 2, "ways": 3}, "latent code is for regression"),
        ({"depth": 0}, "depth of ANP must be at least 1"),
        ({"samples": 0}, "samples of ANP must be at least 1"),
        ({"y_scale": 0.0}, "y_scale is the typical size of y"),
        ({"min_std": -1.0}, "min_std of ANP must be at least 0"),
    ],
)
def test_impossible_sizes_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        anp(**fields)


def test_a_width_that_is_none_is_told():
    learner = cnp(width=2)
    with pytest.raises(ConfigError, match=r"width=2 promises features \[n, 2\], but the encoder gives \[12, 1\]"):
        learner.adapt(learner.init(), one_episode().support)


def test_layers_start_as_those_of_torch():
    drawn = perceptron("a", [50, 400, 3], torch.Generator().manual_seed(0))
    assert [tuple(v.shape) for v in drawn.values()] == [(400, 50), (400,), (3, 400), (3,)]
    bound = 1 / math.sqrt(50)
    assert float(drawn["a.0.weight"].abs().max()) == pytest.approx(bound, rel=1e-2)
    assert float(drawn["a.0.weight"].std()) == pytest.approx(bound / math.sqrt(3), rel=2e-2)


def test_ways_may_be_others_at_test():
    for learner in (cnp(ways=WAYS, width=4), anp(ways=WAYS, width=4)):
        score = qs.evaluate(qs.Trained(learner, generic(learner)), clusters(ways=5, shots=3), episodes=3, engine="loop")
        assert score.protocol.ways == 5
