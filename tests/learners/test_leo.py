"""LEO against the mathematics: each part written out by hand, and what the inner loops reduce to."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from problems import assert_close, clusters, random_episodes, smooth_conv
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

import quickstudy as qs
from quickstudy.engine import mapping
from quickstudy.errors import ConfigError
from quickstudy.experiments import recipes
from quickstudy.learner import Batch, Episode, Theta
from quickstudy.learners.gradient.leo import Gaussian, Noise, correlation, decoded, divergence, gaussian, inferred
from quickstudy.nn.parameters import part

pytestmark = pytest.mark.usefixtures("double")

WAYS, WIDTH, LATENT = 3, 4, 2


def leo(**fields: Any) -> qs.LEO:
    """On features [n, 4], with rates that differ from entry to entry once `generic` has moved them."""
    sizes = {"ways": WAYS, "latent": LATENT, "lr": 0.5, "steps": 2, "finetune_lr": 0.3, "finetune_steps": 2}
    return qs.LEO(nn.Flatten(), WIDTH, **sizes | {"sample": False} | fields)


def generic(learner: qs.LEO) -> Theta:
    drawn = torch.Generator().manual_seed(5)
    return {n: v + 0.1 * torch.randn(v.shape, generator=drawn) for n, v in learner.init().items()}


def one_episode(**sizes: Any) -> Episode:
    return mapping.unstack(random_episodes(1, **sizes))[0]


def features(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def slope(learner: qs.LEO, theta: Theta, episode: Episode) -> Theta:
    return qs.meta_gradient(learner, theta, Episode(*(Batch(x[None], y[None]) for x, y in episode)))[1]


# --- the parts -------------------------------------------------------------------------------------------------------


def test_the_divergence_of_a_standard_normal_from_itself_is_zero():
    assert float(divergence(Gaussian(torch.zeros(3, 2), torch.ones(3, 2)))) == 0


def test_the_divergence_is_that_of_torch():
    q = Gaussian(torch.randn(3, 2), torch.rand(3, 2) + 0.1)
    assert_close(divergence(q), kl_divergence(Normal(*q), Normal(0.0, 1.0)).mean(), 1e-12)


def test_orthogonal_columns_have_no_correlation():
    orthogonal = torch.linalg.qr(torch.randn(6, 3))[0]
    assert float(correlation(orthogonal * torch.tensor([1.0, 20.0, 0.3]))) < 1e-30


def test_the_correlation_is_that_of_a_plain_loop():
    """The decoder takes z to weights, so it is the images of the latent axes that are to differ: columns, not rows."""
    weight = torch.randn(6, 3)
    a = weight.numpy()
    cosine = [
        [a[:, i] @ a[:, j] / np.linalg.norm(a[:, i]) / np.linalg.norm(a[:, j]) for j in range(3)] for i in range(3)
    ]
    assert float(correlation(weight)) == pytest.approx(((np.array(cosine) - np.eye(3)) ** 2).mean(), rel=1e-12)


def test_the_code_of_a_class_is_the_mean_over_all_pairs():
    """A plain double loop; the classes have 3, 2 and 1 examples."""
    parts, y = part(generic(leo()), "leo."), torch.tensor([2, 0, 1, 0, 0, 1])
    z = torch.randn(6, WIDTH)
    e = [parts["encoder.weight"] @ one for one in z]

    def relation(pair: Tensor) -> Tensor:
        first = (parts["relation.0.weight"] @ pair).clamp(min=0)
        return parts["relation.2.weight"] @ (parts["relation.1.weight"] @ first).clamp(min=0)

    found = inferred(parts, z, y, WAYS)
    for k in range(WAYS):
        mine = [e[i] for i in range(6) if y[i] == k]
        wanted = torch.stack([relation(torch.cat([a, b])) for a in mine for b in e]).mean(0)
        assert_close(found.mean[k], wanted[:LATENT], 1e-12)
        assert_close(found.std[k], (1 + wanted[LATENT:].exp()).log() / np.log(2), 1e-12)


def test_deviations_start_at_their_scale():
    q = gaussian(torch.zeros(3, 4), 0.25)
    assert_close(q.std, torch.full((3, 2), 0.25), 1e-12)
    parts = {"decoder.weight": torch.zeros(2 * WIDTH, LATENT)}
    assert_close(decoded(parts, torch.ones(WAYS, LATENT), WAYS).std, torch.full((WAYS, WIDTH), (2 / 7) ** 0.5), 1e-12)


# --- the inner loops -------------------------------------------------------------------------------------------------


def by_hand(theta: Theta, support: Batch, weights: Tensor, rate: Tensor, steps: int) -> Tensor:
    """`steps` times w <- w - rate applied to the gradient, which is (softmax - one hot)^T Z over the class size."""
    z, wanted = features(support.x), F.one_hot(support.y, WAYS)
    for _ in range(steps):
        gradient = WAYS * ((z @ weights.T).softmax(1) - wanted).T @ z / len(z)
        weights = weights - gradient @ rate
    return weights


def start_of(theta: Theta, support: Batch) -> Tensor:
    """The decoded weights before any step."""
    parts = part(theta, "leo.")
    code = inferred(parts, features(support.x), support.y, WAYS)
    return code.mean @ parts["decoder.weight"][:WIDTH].T


def test_without_steps_the_weights_are_the_decoded_means():
    learner, (support, query) = leo(steps=0, finetune_steps=0), one_episode()
    theta = generic(learner)
    phi = learner.adapt(theta, support)
    assert_close(phi.weights, start_of(theta, support), 1e-12)
    assert_close(learner.predict(theta, phi, query.x), features(query.x) @ phi.weights.T, 1e-12)


@pytest.mark.parametrize("steps", [1, 3])
def test_latent_steps_are_preconditioned_weight_steps(steps):
    """w = D z, so z - rate * D^T g means w - D diag(rate) D^T g."""
    learner, (support, _) = leo(steps=steps, finetune_steps=0), one_episode()
    theta = generic(learner)
    d = theta["leo.decoder.weight"][:WIDTH]
    wanted = by_hand(theta, support, start_of(theta, support), d @ theta["leo.rate.latent"].diag() @ d.T, steps)
    assert_close(learner.adapt(theta, support).weights, wanted, 1e-12)
    assert float((wanted - start_of(theta, support)).abs().max()) > 1e-3


@pytest.mark.parametrize("steps", [1, 3])
def test_fine_tuning_is_descent_on_the_weights(steps):
    learner, (support, _) = leo(steps=0, finetune_steps=steps), one_episode()
    theta = generic(learner)
    wanted = by_hand(theta, support, start_of(theta, support), theta["leo.rate.finetune"].diag(), steps)
    assert_close(learner.adapt(theta, support).weights, wanted, 1e-12)


def test_every_example_twice_changes_nothing():
    learner, (support, _) = leo(), one_episode()
    theta, twice = generic(learner), Batch(*(torch.cat([t, t]) for t in support))
    assert_close(learner.adapt(theta, twice).weights, learner.adapt(theta, support).weights, 1e-12)


def test_the_length_of_the_features_does_not_matter():
    learner, (support, query) = leo(), one_episode()
    theta, longer = generic(learner), Episode(support._replace(x=7 * support.x), query._replace(x=3 * query.x))
    assert_close(learner.meta_loss(theta, longer), learner.meta_loss(theta, Episode(support, query)), 1e-12)


def test_other_ways_than_in_training():
    theta = generic(leo())
    support, query = one_episode(ways=5)
    learner = dataclasses.replace(leo(), ways=5)
    assert learner.predict(theta, learner.adapt(theta, support), query.x).shape == (len(query.x), 5)


# --- the meta-loss and its gradient ----------------------------------------------------------------------------------


def test_the_meta_loss_is_the_query_loss_and_the_penalties():
    learner, (support, query) = leo(kl=0.3, encoder_penalty=0.2, orthogonality=0.7, finetune_steps=0), one_episode()
    theta = generic(learner)
    parts, phi = part(theta, "leo."), learner.adapt(theta, support)
    code = inferred(parts, features(support.x), support.y, WAYS)
    d = parts["decoder.weight"][:WIDTH]
    moved = torch.linalg.lstsq(d, (phi.weights - start_of(theta, support)).T).solution  # D has full column rank
    wanted = F.cross_entropy(learner.predict(theta, phi, query.x), query.y)
    wanted = wanted + 0.3 * divergence(code) + 0.2 * (moved**2).mean() + 0.7 * correlation(parts["decoder.weight"])
    assert_close(learner.meta_loss(theta, Episode(support, query)), wanted, 1e-10)


@pytest.mark.parametrize("norm", ["batch", "support"])
def test_without_penalties_training_scores_what_is_done_at_test(norm):
    learner, episode = leo(kl=0.0, encoder_penalty=0.0, orthogonality=0.0), one_episode(shape=(1, 6, 6))
    learner = dataclasses.replace(learner, encoder=smooth_conv(norm, None), width=8)
    theta = generic(learner)
    output = learner.predict(theta, learner.adapt(theta, episode.support), episode.query.x)
    assert_close(learner.meta_loss(theta, episode), F.cross_entropy(output, episode.query.y), 1e-12)


@pytest.mark.parametrize("sample", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_meta_gradient_is_the_derivative_of_the_meta_loss(sample, dropout):
    """Finite differences of the whole; a drawn loss is drawn alike each time."""
    learner = leo(sample=sample, dropout=dropout, kl=0.5, orthogonality=0.5, encoder_penalty=0.0)
    theta, episode = generic(learner), one_episode()

    def meta_loss(*values: Tensor) -> Tensor:
        torch.manual_seed(11)
        return learner.meta_loss(dict(zip(theta, values, strict=True)), episode)

    leaves = [value.clone().requires_grad_() for value in theta.values()]
    assert torch.autograd.gradcheck(meta_loss, leaves, atol=1e-7, rtol=1e-5)


def test_the_encoder_penalty_pulls_the_start_to_the_end_and_not_the_end_to_the_start():
    episode = one_episode()
    theta = generic(leo())
    with_it, without = (slope(leo(encoder_penalty=p, finetune_steps=0), theta, episode) for p in (1.0, 0.0))
    difference = {name: with_it[name] - without[name] for name in theta}
    names = ["leo.encoder.weight", *(f"leo.relation.{i}.weight" for i in range(3))]
    leaves = {name: theta[name].clone().requires_grad_() for name in names}
    z, y = features(episode.support.x), episode.support.y
    start = inferred(part(leaves, "leo."), z, y, WAYS).mean
    d = theta["leo.decoder.weight"][:WIDTH]
    ended = leo(finetune_steps=0).adapt(theta, episode.support).weights
    end = torch.linalg.lstsq(d, ended.T).solution.T
    wanted = torch.autograd.grad(((end - start) ** 2).mean(), list(leaves.values()))
    assert_close({name: difference[name] for name in names}, dict(zip(names, wanted, strict=True)), 1e-9)
    assert all(not difference[name].abs().max() > 1e-12 for name in theta if name not in names)


def test_first_order_has_the_same_loss_and_another_gradient():
    theta, episode = generic(leo()), one_episode()
    assert_close(leo(first_order=True).meta_loss(theta, episode), leo().meta_loss(theta, episode), 1e-12)
    exact, short = (slope(leo(first_order=flag), theta, episode)["leo.decoder.weight"] for flag in (False, True))
    assert float((exact - short).abs().max()) > 1e-3
    still = {"steps": 0, "finetune_steps": 0}
    exact, short = (slope(leo(first_order=flag, **still), theta, episode) for flag in (False, True))
    assert_close(short, exact, 1e-12)


def test_a_blank_input_gives_finite_numbers():
    learner, (support, query) = leo(), one_episode()
    learner = dataclasses.replace(learner, encoder=nn.Linear(4, WIDTH, bias=False))
    blank = Episode(support._replace(x=support.x * 0), query._replace(x=query.x * 0))
    assert all(torch.isfinite(value).all() for value in slope(learner, learner.init(), blank).values())


# --- drawing ---------------------------------------------------------------------------------------------------------


def test_a_drawn_loss_is_that_of_one_draw_kept_for_all_steps():
    learner, (support, query) = leo(sample=True, kl=0.0, orthogonality=0.0, encoder_penalty=0.0), one_episode()
    theta = generic(learner)
    torch.manual_seed(7)
    found = learner.meta_loss(theta, Episode(support, query))
    torch.manual_seed(7)
    latent, noise = torch.randn(WAYS, LATENT), torch.randn(WAYS, WIDTH)
    parts, z = part(theta, "leo."), features(support.x)
    code = inferred(parts, z, support.y, WAYS)

    def decode(codes: Tensor) -> Tensor:
        q = decoded(parts, codes, WAYS)
        return q.mean + noise * q.std

    codes = code.mean + latent * code.std
    for _ in range(2):
        codes = codes.detach().requires_grad_()
        loss = WAYS * F.cross_entropy(z @ decode(codes).T, support.y)
        codes = codes - parts["rate.latent"] * torch.autograd.grad(loss, codes)[0]
    weights = by_hand(theta, support, decode(codes).detach(), theta["leo.rate.finetune"].diag(), 2)
    assert_close(found, F.cross_entropy(features(query.x) @ weights.T, query.y), 1e-12)


def test_dropout_takes_features_of_both_sets_and_one_mask_serves_all_steps():
    learner, (support, query) = leo(dropout=0.4, kl=0.0, orthogonality=0.0, encoder_penalty=0.0), one_episode()
    theta = generic(learner)
    torch.manual_seed(7)
    found = learner.meta_loss(theta, Episode(support, query))
    torch.manual_seed(7)
    z, zq = (F.dropout(features(x), 0.4) for x in (support.x, query.x))
    weights = learner._descend(part(theta, "leo."), z, support.y, Noise()).weights
    assert_close(found, F.cross_entropy(zq @ weights.T, query.y), 1e-12)


def test_draws_have_the_moments_they_claim():
    """Without steps w = D z + noise: its mean is what adapt takes, and every task of a vmap draws its own."""
    learner, (support, _) = leo(sample=True, steps=0, finetune_steps=0), one_episode()
    theta, count = generic(learner), 20000
    parts, z = part(theta, "leo."), features(support.x)

    def path(_: Tensor) -> tuple[Tensor, Tensor]:
        found = learner._descend(parts, z, support.y, learner._noise(z))
        return found.start, found.weights

    codes, weights = torch.func.vmap(path, randomness="different")(torch.zeros(count))
    code = inferred(parts, z, support.y, WAYS)
    for draws, mean in ((codes, code.mean), (weights, learner.adapt(theta, support).weights)):
        assert float(((draws.mean(0) - mean) / draws.std(0)).abs().max()) < 5 / count**0.5
    assert_close(codes.std(0), code.std, 0.03)
    d = parts["decoder.weight"][:WIDTH]
    spread = weights.var(0) - code.std**2 @ (d**2).T  # what is left is the weights' own noise
    assert_close(spread, torch.stack([decoded(parts, c, WAYS).std ** 2 for c in codes[:2000]]).mean(0), 0.1)


def test_only_a_drawing_meta_loss_draws():
    episode = one_episode()
    for learner, draws in ((leo(), False), (leo(sample=True), True), (leo(dropout=0.5), True)):
        before = torch.get_rng_state()
        theta = learner.init()
        learner.adapt(theta, episode.support)
        assert torch.equal(torch.get_rng_state(), before)
        learner.meta_loss(theta, episode)
        assert torch.equal(torch.get_rng_state(), before) is not draws


def test_the_start_is_always_the_same():
    torch.manual_seed(1)
    first = leo().init()
    torch.manual_seed(2)
    second = leo().init()
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("fields", [{}, {"dropout": 0.2}])
def test_it_learns_while_drawing(fields):
    learner, tasks = qs.LEO(qs.nn.mlp(4, hidden=(8,)), 8, ways=WAYS, latent=4, **fields), clusters()
    fast = {"engine": "vmap", "optimizer": lambda values: torch.optim.Adam(values, 0.01), "progress": False}
    trained = qs.train(learner, tasks, iterations=100, meta_batch=8, **fast)
    before, after = (qs.evaluate(one, tasks, episodes=100) for one in (qs.Trained(learner, learner.init()), trained))
    assert qs.compare(after, before).mean > 0.05


# --- settings --------------------------------------------------------------------------------------------------------


def test_a_layer_of_the_encoder_with_a_reserved_name_is_refused():
    encoder = nn.Module()
    encoder.leo = nn.Linear(4, 4)
    with pytest.raises(ConfigError, match="leo"):
        qs.LEO(encoder, 4).init()


@pytest.mark.parametrize("encoder", [lambda: nn.Linear(4, 5), lambda: nn.Unflatten(1, (2, 2))])
def test_features_of_another_width_are_refused(encoder):
    learner = qs.LEO(encoder(), WIDTH, ways=WAYS)
    with pytest.raises(ConfigError, match="width=4"):
        learner.adapt(learner.init(), one_episode().support)


@pytest.mark.parametrize(
    "fields", [{"steps": -1}, {"finetune_steps": 1.5}, {"latent": 0}, {"width": 0}, {"dropout": 1.0}]
)
def test_impossible_settings_are_refused(fields):
    with pytest.raises(ConfigError):
        qs.LEO(nn.Flatten(), **{"width": 4} | fields)


def test_the_recipe_reads_the_width_off_the_network():
    torch.set_default_dtype(torch.float32)  # as images are
    tasks = qs.tasks.glyphs("train", 5, 1, 2)
    learner = recipes.build_learner(qs.LEO, tasks, {}, {"filters": 8, "downsample": "stride"})
    assert isinstance(learner, qs.LEO) and learner.width == 8 * 2 * 2
    assert "width" not in [field.name for field in recipes.plain_fields(qs.LEO)]
    with torch.no_grad():
        learner.meta_loss(learner.init(), mapping.unstack(tasks.sample(1))[0])
