"""Fields of learners that would otherwise only be carried along: what each does to one task, written out by hand."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from problems import assert_close, clusters, random_episodes
from torch import Tensor, nn

import quickstudy as qs
from quickstudy.learner import Batch, Episode, Theta

pytestmark = pytest.mark.usefixtures("double")


def one(ways: int | None = 3) -> Episode:
    """One task, without the task axis."""
    return Episode(*(Batch(*(t[0] for t in batch)) for batch in random_episodes(1, ways=ways)))


def forward(p: Theta, x: Tensor) -> Tensor:
    """qs.nn.mlp(4, 3, hidden=(5, 4), activation="tanh"), written out."""
    h = torch.tanh(x @ p["layer1.weight"].T + p["layer1.bias"])
    h = torch.tanh(h @ p["layer2.weight"].T + p["layer2.bias"])
    return h @ p["head.weight"].T + p["head.bias"]


def net() -> nn.Module:
    return qs.nn.mlp(4, 3, hidden=(5, 4), activation="tanh")


def test_the_inner_gradient_passes_through_the_curvature():
    """W' = W - lr M_out G M_in^T, and b' = b - lr M g, with matrices that are neither identities nor symmetric."""
    learner, (support, _) = qs.MetaCurvature(nn.Linear(4, 3), lr=0.3, steps=1), one()
    theta = {name: value + 0.5 * torch.randn_like(value) for name, value in learner.init().items()}
    weight, bias = (theta[name].clone().requires_grad_() for name in ("weight", "bias"))
    g, gb = torch.autograd.grad(F.cross_entropy(support.x @ weight.T + bias, support.y), (weight, bias))
    out, inside, of_bias = (theta[f"curvature.{name}"] for name in ("weight.0", "weight.1", "bias.0"))
    phi = learner.adapt(theta, support)
    assert_close(phi["weight"], weight - 0.3 * out @ g @ inside.T, 1e-13)
    assert_close(phi["bias"], bias - 0.3 * of_bias @ gb, 1e-13)


def test_boil_holds_what_its_patterns_name():
    """stays="layer1.*": the first layer is fixed, and the head, which is fixed by default, takes a step."""
    learner, (support, _) = qs.BOIL(net(), lr=0.3, steps=1, stays="layer1.*"), one()
    theta = learner.init()
    moving = {n: v.clone().requires_grad_() for n, v in theta.items() if not n.startswith("layer1.")}
    loss = F.cross_entropy(forward(theta | moving, support.x), support.y)
    slopes = torch.autograd.grad(loss, list(moving.values()))
    phi = learner.adapt(theta, support)
    assert set(phi) == {"layer2.weight", "layer2.bias", "head.weight", "head.bias"}
    assert_close(phi, {n: v - 0.3 * g for (n, v), g in zip(moving.items(), slopes, strict=True)}, 1e-13)


@pytest.mark.parametrize("layer", ["layer1", "layer2"])
def test_cavias_context_scales_and_shifts_the_layer_that_is_named(layer):
    """(1 + s) h + b with [s, b] = W c, at the named layer and nowhere else."""
    learner, (_, query) = qs.CAVIA(net(), context=2, layer=layer), one()
    theta, c = learner.init(), torch.tensor([0.7, -1.1])
    width = len(theta[f"{layer}.bias"])
    changes = theta["context.weight"] @ c
    scale, shift = changes[:width], changes[width:]
    changed = dict(theta)
    changed[f"{layer}.weight"] = (1 + scale)[:, None] * theta[f"{layer}.weight"]
    changed[f"{layer}.bias"] = (1 + scale) * theta[f"{layer}.bias"] + shift
    assert_close(learner.predict(theta, {"context": c}, query.x), forward(changed, query.x), 1e-13)
    assert not torch.allclose(learner.predict(theta, {"context": c}, query.x), forward(theta, query.x), atol=1e-3)


@pytest.mark.parametrize(("cosine", "name"), [(True, "CosineAnnealingLR"), (False, None)])
def test_mamlplusplus_trains_under_a_cosine_unless_told_otherwise(cosine, name, tmp_path):
    learner = qs.MAMLPlusPlus(net(), steps=1, cosine=cosine)
    assert learner.outer().schedule == ("cosine" if cosine else "constant")
    torch.set_default_dtype(torch.float32)
    learner = qs.MAMLPlusPlus(net(), steps=1, cosine=cosine)
    common = {"meta_batch": 2, "engine": "loop", "progress": False}
    qs.train(learner, clusters(), iterations=2, out=tmp_path / "run", **common)
    scheduler = json.loads((tmp_path / "run" / "config.json").read_text())["scheduler"]
    assert (scheduler or {"name": None})["name"] == name


@pytest.mark.parametrize("readings", [0, 1, 4])
def test_matchingnet_reads_the_support_set_as_often_as_it_says(readings):
    """The query's embedding after that many steps of the reading cell, then attention on the support set's."""
    learner, (support, query) = qs.MatchingNet(nn.Linear(4, 6), ways=3, width=6, context=True, readings=readings), one()
    theta = learner.init()
    memory = learner.adapt(theta, support).embeddings
    own = {name: theta[f"matchingnet.reading.{name}"] for name in ("input", "hidden", "bias")}
    z = query.x @ theta["weight"].T + theta["bias"]
    h, c = z, torch.zeros_like(z)
    for _ in range(readings):
        read = (h @ memory.T).softmax(1) @ memory
        gates = z @ own["input"].T + torch.cat([h, read], 1) @ own["hidden"].T + own["bias"]
        let_in, forget, new, let_out = gates.chunk(4, 1)
        c = forget.sigmoid() * c + let_in.sigmoid() * new.tanh()
        h = z + let_out.sigmoid() * c.tanh()
    odds = (10 * F.normalize(h, dim=1) @ F.normalize(memory, dim=1).T).softmax(1)
    by_class = torch.stack([odds[:, support.y == k].sum(1) for k in range(3)], 1)
    assert_close(learner.predict(theta, learner.adapt(theta, support), query.x).exp(), by_class, 1e-12)


def svm_objective(weight: Tensor, batch: Batch, c: float) -> float:
    """|W|^2 / 2 + C sum_i max_k (1 - [k = y_i] + w_k . x_i - w_{y_i} . x_i), Crammer and Singer."""
    scores = batch.x @ weight
    margins = scores - scores.gather(1, batch.y[:, None]) + 1 - F.one_hot(batch.y, 3)
    return float(0.5 * weight.square().sum() + c * margins.amax(1).sum())


def test_metaoptnets_cost_is_that_of_its_support_vector_machine():
    """Each of two costs has its own solution, which is better at that cost than the solution of the other."""
    (support, _), costs = one(), (0.02, 1.0)
    learners = [qs.MetaOptNet(nn.Flatten(), ways=3, c=c, solver_steps=40) for c in costs]
    cheap, dear = (learner.adapt(learner.init(), support).weight for learner in learners)
    assert svm_objective(cheap, support, costs[0]) < 0.99 * svm_objective(dear, support, costs[0])
    assert svm_objective(dear, support, costs[1]) < 0.99 * svm_objective(cheap, support, costs[1])


@pytest.mark.parametrize(("heads", "self_attention"), [(1, 0), (2, 0), (3, 1)])
def test_the_attentive_process_by_hand(heads, self_attention):
    """Keys, values, attention head by head, self-attention among the support points, and the decoder."""
    sizes = {"width": 2, "representation": 6, "depth": 2, "min_std": 0.1}
    learner = qs.ANP(nn.Flatten(), heads=heads, self_attention=self_attention, **sizes)
    theta = {name: value + 0.3 * torch.randn_like(value) for name, value in learner.init().items()}
    parts = {name.removeprefix("process."): value for name, value in theta.items()}
    x, y, xq = torch.randn(5, 2), torch.randn(5, 1), torch.randn(3, 2)

    def layers(name: str, x: Tensor) -> Tensor:
        for i in range(2):
            x = (x.relu() if i else x) @ parts[f"{name}.{i}.weight"].T + parts[f"{name}.{i}.bias"]
        return x

    def attention(name: str, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q, k, v = (t @ parts[f"{name}.{w}"].T for t, w in ((queries, "query"), (keys, "key"), (values, "value")))
        size = 6 // heads
        cut = [slice(i * size, (i + 1) * size) for i in range(heads)]
        each = [(q[:, one] @ k[:, one].T / size**0.5).softmax(1) @ v[:, one] for one in cut]
        return torch.cat(each, 1) @ parts[f"{name}.out"].T

    values = layers("pairs", torch.cat([x, y], 1))
    for i in range(self_attention):
        values = values + attention(f"self.{i}", values, values, values)
        values = values + layers(f"self.{i}.mlp", values)
    r = attention("attention", layers("keys", xq), layers("keys", x), values)
    mean, u = layers("decoder", torch.cat([xq, r], 1)).chunk(2, 1)
    found = learner.distribution(theta, learner.adapt(theta, Batch(x, y)), xq)
    assert_close(found[0], mean, 1e-12)
    assert_close(found[1], 0.1 + F.softplus(u), 1e-12)
