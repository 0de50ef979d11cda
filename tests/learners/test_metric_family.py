"""Learners that compare embeddings: what they reduce to, and plain loops beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from problems import assert_close, clusters, random_episodes, smooth_conv
from torch import Tensor, nn

import quickstudy as qs
from quickstudy.engine import mapping
from quickstudy.errors import ConfigError
from quickstudy.learner import Batch, Episode, Learner, Theta
from quickstudy.learners.metric.attentive_protonet import attended
from quickstudy.learners.metric.context import cell, in_context, init_context, reading
from quickstudy.learners.metric.matching_net import log_attention

pytestmark = pytest.mark.usefixtures("double")

WAYS = 3


def one_episode(**sizes: Any) -> Episode:
    return mapping.unstack(random_episodes(1, **sizes))[0]


def answers(learner: Learner, theta: Theta, episode: Episode) -> Tensor:
    return learner.predict(theta, learner.adapt(theta, episode.support), episode.query.x).detach()


def generic(learner: Learner) -> Theta:
    drawn = torch.Generator().manual_seed(5)
    return {n: v + 0.1 * torch.randn(v.shape, generator=drawn) for n, v in learner.init().items()}


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / a.norm() / b.norm())


# --- matching networks -----------------------------------------------------------------------------------------------


def matching(**fields: Any) -> qs.MatchingNet:
    return qs.MatchingNet(nn.Linear(4, 6), ways=WAYS, **fields)


@pytest.mark.parametrize("context", [False, True])
def test_attention_sums_to_one(context):
    learner, episode = matching(context=context, width=6), one_episode()
    mass = answers(learner, generic(learner), episode).exp()
    assert_close(mass.sum(1), torch.ones(len(mass)), 1e-12)


def test_attention_is_that_of_a_plain_loop():
    """Classes of 3, 2 and 1 examples."""
    learner, x, xq = matching(scale=4.0), torch.randn(6, 4), torch.randn(5, 4)
    theta, y = learner.init(), torch.tensor([2, 0, 1, 0, 0, 1])
    z, zq = learner.encoder(x).detach(), learner.encoder(xq).detach()
    weights = np.exp([[4.0 * cosine(q, s) for s in z] for q in zq])
    weights /= weights.sum(1, keepdims=True)
    wanted = np.log([[row[(y == k).numpy()].sum() for k in range(3)] for row in weights])
    found = learner.predict(theta, learner.adapt(theta, Batch(x, y)), xq).detach().numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_a_class_far_behind_keeps_its_logarithm_and_its_slope():
    """In single precision exp(-300) is zero, and its logarithm would be minus infinity."""
    scores, y = torch.tensor([[0.0, -300.0, -301.0, -5.0]], dtype=torch.float32), torch.tensor([0, 1, 1, 2])
    leaf = scores.requires_grad_()
    found = log_attention(leaf, y, 3)
    assert float((found.detach() - torch.tensor([[-0.0067, -299.6934, -5.0067]])).abs().max()) < 1e-3
    slope = torch.autograd.grad(found[0, 1], leaf)[0]
    assert torch.isfinite(slope).all() and float(slope[0, 1]) == pytest.approx(0.7311, abs=1e-3)


def test_one_shot_logits_are_the_scaled_cosines_up_to_a_constant():
    learner, episode = matching(scale=5.0), one_episode(shots=1)
    order = episode.support.y.argsort()
    z, zq = learner.encoder(episode.support.x[order]).detach(), learner.encoder(episode.query.x).detach()
    wanted = 5.0 * F.cosine_similarity(zq[:, None], z[None], dim=-1)
    assert_close(answers(learner, learner.init(), episode), wanted.log_softmax(1), 1e-12)


def test_the_fixed_scale_is_not_learned():
    assert set(matching(learn_scale=False).init()) == {"weight", "bias"}
    assert "matchingnet.log_scale" in matching().init()
    learned, fixed = matching(scale=3.0), None
    fixed = dataclasses.replace(learned, learn_scale=False)
    assert_close(answers(learned, learned.init(), one_episode()), answers(fixed, fixed.init(), one_episode()), 1e-12)


def test_the_cell_is_torchs_lstm_cell():
    parts = {name.removeprefix("forward."): v for name, v in context(6).items() if name.startswith("forward.")}
    torchs = nn.LSTMCell(6, 6)
    bias = {"bias_ih": parts["bias"], "bias_hh": torch.zeros(24)}
    torchs.load_state_dict({"weight_ih": parts["input"], "weight_hh": parts["hidden"], **bias})
    x, h, c = torch.randn(2, 6), torch.randn(2, 6), torch.randn(2, 6)
    found, wanted = cell(parts, x @ parts["input"].T + parts["bias"], h, c), torchs(x, (h, c))
    assert_close(found[0], wanted[0].detach(), 1e-12)
    assert_close(found[1], wanted[1].detach(), 1e-12)


def context(width: int) -> Theta:
    return init_context(width, torch.Generator().manual_seed(3))


def test_the_support_set_in_context_is_torchs_bidirectional_lstm():
    parts, z = context(6), torch.randn(5, 6)
    lstm, state = nn.LSTM(6, 6, bidirectional=True), {}
    for ours, end in (("forward", ""), ("backward", "_reverse")):
        state |= {f"weight_ih_l0{end}": parts[f"{ours}.input"], f"weight_hh_l0{end}": parts[f"{ours}.hidden"]}
        state |= {f"bias_ih_l0{end}": parts[f"{ours}.bias"], f"bias_hh_l0{end}": torch.zeros(24)}
    lstm.load_state_dict(state)
    both = lstm(z)[0].detach()
    assert_close(in_context(parts, z), z + both[:, :6] + both[:, 6:], 1e-12)


def test_no_reading_leaves_the_query_alone_and_one_is_a_step_by_hand():
    parts, z, memory = context(6), torch.randn(4, 6), torch.randn(5, 6)
    assert torch.equal(reading(parts, z, memory, 0), z)
    read = torch.stack([sum(w * m for w, m in zip((q @ memory.T).softmax(0), memory, strict=True)) for q in z])
    gates = z @ parts["reading.input"].T + parts["reading.bias"] + torch.cat([z, read], 1) @ parts["reading.hidden"].T
    i, _, g, o = gates.chunk(4, 1)
    assert_close(reading(parts, z, memory, 1), z + o.sigmoid() * (i.sigmoid() * g.tanh()).tanh(), 1e-12)


def test_with_cells_that_give_nothing_context_changes_nothing():
    plain, full = matching(), None
    full = dataclasses.replace(plain, context=True, width=6)
    theta = {
        n: torch.zeros_like(v) if ".hidden" in n or ".input" in n or ".bias" in n else v for n, v in full.init().items()
    }
    assert_close(answers(full, theta, one_episode()), answers(plain, plain.init(), one_episode()), 1e-12)


@pytest.mark.parametrize("fields", [{"scale": 0.0}, {"readings": -1}, {"context": True}])
def test_impossible_settings_of_matchingnet_are_refused(fields):
    with pytest.raises(ConfigError):
        matching(**fields)


# --- attentive prototypes --------------------------------------------------------------------------------------------


def attentive(**fields: Any) -> qs.AttentiveProtoNet:
    return qs.AttentiveProtoNet(nn.Linear(4, 6), 6, ways=WAYS, **{"contrast": 0.0} | fields)


@pytest.mark.parametrize("heads", [1, 3])
def test_without_attention_it_is_a_protonet_bit_for_bit(heads):
    learner, episode = attentive(heads=heads), one_episode()
    proto = qs.ProtoNet(learner.encoder, ways=WAYS)
    theta = generic(learner)
    theta["attention.output.weight"].zero_()
    plain = {n: v for n, v in theta.items() if not n.startswith("attention.")}
    assert torch.equal(answers(learner, theta, episode), answers(proto, plain, episode))
    assert torch.equal(learner.meta_loss(theta, episode), proto.meta_loss(plain, episode))
    theta = generic(learner)
    assert float((answers(learner, theta, episode) - answers(proto, plain, episode)).abs().max()) > 1e-2


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_is_torchs(heads):
    z, theta = torch.randn(5, 6), generic(attentive(heads=heads))
    parts = {n.removeprefix("attention."): v for n, v in theta.items() if n.startswith("attention.")}
    layer = nn.MultiheadAttention(6, heads, bias=False)
    joined = torch.cat([parts[f"{name}.weight"] for name in ("query", "key", "value")])
    layer.load_state_dict({"in_proj_weight": joined, "out_proj.weight": parts["output.weight"]})
    h = F.layer_norm(z, (6,))
    assert_close(attended(parts, z, heads), (z + layer(h, h, h)[0]).detach(), 1e-12)


def test_adapted_prototypes_move_with_their_classes():
    theta = generic(attentive())
    parts = {n.removeprefix("attention."): v for n, v in theta.items() if n.startswith("attention.")}
    z, order = torch.randn(5, 6), torch.tensor([3, 0, 4, 1, 2])
    assert_close(attended(parts, z[order], 2), attended(parts, z, 2)[order], 1e-12)


def test_the_regulariser_attends_within_classes():
    """Class by class with a loop, as the mask does at once."""
    learner, episode = attentive(contrast=0.7, temperature=2.0), one_episode(queries=3)
    theta = generic(learner)
    parts = {n.removeprefix("attention."): v for n, v in theta.items() if n.startswith("attention.")}
    x, y = (torch.cat(t) for t in zip(*episode, strict=True))
    z = F.linear(x, theta["weight"], theta["bias"])
    centres = torch.stack([attended(parts, z[y == k], 1).mean(0) for k in range(WAYS)])
    wanted = 0.7 * F.cross_entropy(-(torch.cdist(z, centres) ** 2) / 2.0, y)
    plain = dataclasses.replace(learner, contrast=0.0).meta_loss(theta, episode)
    assert_close(learner.meta_loss(theta, episode) - plain, wanted, 1e-9)


@pytest.mark.parametrize("fields", [{"heads": 4}, {"heads": 0}, {"contrast": -1.0}, {"temperature": 0.0}])
def test_impossible_settings_of_attentiveprotonet_are_refused(fields):
    with pytest.raises(ConfigError):
        attentive(**fields)


def test_embeddings_of_another_width_are_refused():
    learner = qs.AttentiveProtoNet(nn.Linear(4, 5), 6, ways=WAYS)
    with pytest.raises(ConfigError, match="width=6"):
        learner.meta_loss(learner.init(), one_episode())


# --- relation networks -----------------------------------------------------------------------------------------------


def test_relation_scores_are_those_of_each_pair_by_itself():
    encoder = smooth_conv("layer", None)[:-1]
    learner = qs.RelationNet(encoder, qs.nn.relation((2, 2, 2), filters=3, norm="layer"), ways=WAYS)
    episode = one_episode(shape=(1, 6, 6))
    (x, y), (xq, yq) = episode
    z, zq = encoder(x), encoder(xq)
    means = torch.stack([z[y == k].mean(0) for k in range(WAYS)])
    wanted = torch.stack([torch.stack([learner.relation(c[None], q[None]).squeeze() for c in means]) for q in zq])
    assert_close(answers(learner, learner.init(), episode), wanted.detach(), 1e-10)
    loss = ((wanted.sigmoid() - torch.eye(WAYS)[yq]) ** 2).mean()
    assert_close(learner.meta_loss(learner.init(), episode), loss.detach(), 1e-10)


def test_a_relation_module_of_ones_own():
    """A relation that is minus the squared distance makes the answers of a ProtoNet."""

    class Distance(nn.Module):
        def forward(self, classes: Tensor, examples: Tensor) -> Tensor:
            return -((examples[:, None] - classes) ** 2).sum(-1)

    encoder, episode = nn.Linear(4, 6), one_episode()
    learner, proto = qs.RelationNet(encoder, Distance(), ways=WAYS), qs.ProtoNet(encoder, ways=WAYS)
    assert_close(answers(learner, learner.init(), episode), answers(proto, proto.init(), episode), 1e-10)


def test_with_support_norm_the_relation_does_not_see_other_queries():
    encoder = smooth_conv("support", None)[:-1]
    learner = qs.RelationNet(encoder, qs.nn.relation((2, 2, 2), filters=3, norm="support"), ways=WAYS)
    theta, (support, query) = generic(learner), one_episode(shape=(1, 6, 6))
    phi = learner.adapt(theta, support)
    alone = torch.cat([learner.predict(theta, phi, x[None]) for x in query.x])
    assert_close(learner.predict(theta, phi, query.x), alone, 1e-12)
    assert set(phi.relation_statistics) == {f"rest.norm{i}.{kind}" for i in (1, 2) for kind in ("mean", "variance")}


def test_a_network_of_maps_can_be_trained_from_scratch_as_a_control():
    learner = qs.RelationNet(smooth_conv("layer", None)[:-1], qs.nn.relation((2, 2, 2), filters=3), ways=WAYS)
    score = qs.evaluate(
        qs.Trained(learner, learner.init()),
        clusters((1, 6, 6), ways=WAYS),
        episodes=2,
        controls=["from_scratch"],
        engine="loop",
    )
    assert 0 <= score.controls["from_scratch"].mean <= 1


# --- all of them -----------------------------------------------------------------------------------------------------

Build = Callable[[nn.Module, int], Learner]
FAMILY: dict[str, Build] = {
    "protonet": lambda encoder, width: qs.ProtoNet(encoder),
    "matchingnet": lambda encoder, width: qs.MatchingNet(encoder),
    "matchingnet, context": lambda encoder, width: qs.MatchingNet(encoder, width=width, context=True, readings=2),
    "relationnet": lambda encoder, width: qs.RelationNet(encoder, qs.nn.relation((width,))),
    "attentiveprotonet": lambda encoder, width: qs.AttentiveProtoNet(encoder, width, heads=2),
    "r2d2": lambda encoder, width: qs.R2D2(encoder),
    "metaoptnet, svm": lambda encoder, width: qs.MetaOptNet(encoder),
    "metaoptnet, ridge": lambda encoder, width: qs.MetaOptNet(encoder, head="ridge", lam=1.0),
}


@pytest.mark.parametrize("name", FAMILY)
def test_trained_on_few_ways_and_shots_it_answers_many(name):
    """5-way 1-shot in training, 20-way 5-shot at test, far above chance."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    learner = FAMILY[name](qs.nn.mlp(16, hidden=(16,)), 16)
    train = clusters((16,), 40, 12, ways=5, shots=1, queries=3)
    test = clusters((16,), 30, 12, ways=20, shots=5, queries=2, seed=1)
    fast = {"engine": "vmap", "optimizer": lambda values: torch.optim.Adam(values, 0.01), "progress": False}
    trained = qs.train(learner, train, iterations=60, meta_batch=4, **fast)
    score = qs.evaluate(trained, test, episodes=20, engine="loop")
    assert score.protocol.ways == 20 and score.protocol.shots == 5
    assert score.mean > 0.5, str(score)


@pytest.mark.parametrize("name", [name for name in FAMILY if "context" not in name])
def test_it_learns_to_look_away_from_noise(name):
    """Classes differ in 4 of 16 numbers; the rest is noise, which an untrained embedding takes for information."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)

    def tasks(seed: int) -> qs.tasks.ClassTasks:
        drawn = torch.Generator().manual_seed(seed)
        centres = 2 * torch.randn(60, 1, 4, generator=drawn)
        examples = torch.cat(
            [centres + 0.5 * torch.randn(60, 10, 4, generator=drawn), 2 * torch.randn(60, 10, 12, generator=drawn)], -1
        )
        starts = torch.arange(0, 601, 10)
        return qs.tasks.ClassTasks(examples.flatten(0, 1), starts, [str(i) for i in range(60)], 5, 2, 4)

    learner = FAMILY[name](qs.nn.mlp(16, hidden=(16,)), 16)
    fast = {"engine": "vmap", "optimizer": lambda values: torch.optim.Adam(values, 0.01), "progress": False}
    trained = qs.train(learner, tasks(0), iterations=150, meta_batch=4, **fast)
    before, after = (
        qs.evaluate(t, tasks(1), episodes=60, engine="loop") for t in (qs.Trained(learner, learner.init()), trained)
    )
    assert qs.compare(after, before).mean > 0.1, f"{before} -> {after}"
