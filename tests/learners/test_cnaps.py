"""CNAPs against the mathematics: what it reduces to, and what each part may see."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from problems import assert_close, clusters, random_episodes, smooth_conv
from torch import nn
from torch.func import functional_call

import quickstudy as qs
from quickstudy.engine import mapping
from quickstudy.errors import ConfigError
from quickstudy.experiments import recipes
from quickstudy.learner import Batch, Episode, Theta
from quickstudy.learners.parts.distance import class_means
from quickstudy.nn.film import conditioned_layers
from quickstudy.nn.parameters import own, part

pytestmark = pytest.mark.usefixtures("double")

WAYS, IMAGE = 3, (1, 6, 6)


def cnaps(norm: str = "layer", **fields: Any) -> qs.CNAPs:
    torch.manual_seed(0)
    return qs.CNAPs(smooth_conv(norm, None), 8, **{"ways": WAYS, "embedding": 4} | fields)


def generic(learner: Any) -> Theta:
    drawn = torch.Generator().manual_seed(5)
    return {n: v + 0.3 * torch.randn(v.shape, generator=drawn) for n, v in learner.init().items()}


def without(theta: Theta, *endings: str) -> Theta:
    return {name: torch.zeros_like(v) if name.endswith(endings) else v for name, v in theta.items()}


def one_episode(shots: int = 2) -> Episode:
    return mapping.unstack(random_episodes(1, IMAGE, WAYS, shots=shots))[0]


def plain_features(learner: qs.CNAPs, theta: Theta, x: torch.Tensor) -> torch.Tensor:
    return functional_call(learner.encoder, own(learner.encoder, theta), (x,))


def test_no_modulation_and_no_writers_leave_the_plain_extractor_and_its_class_means():
    learner, (support, query) = cnaps(), one_episode()
    theta = without(generic(learner), ".size", "weights.1.weight", "weights.1.bias", "biases.1.weight")
    means = class_means(plain_features(learner, theta, support.x), support.y, WAYS)
    phi = learner.adapt(theta, support)
    assert_close(phi.weights, means, 1e-12)
    assert not phi.biases.any() and not any(film.any() for film in phi.films.values())
    wanted = plain_features(learner, theta, query.x) @ means.T / math.sqrt(8)
    assert_close(learner.predict(theta, phi, query.x), wanted, 1e-12)


def test_a_fresh_learner_modulates_by_less_than_a_hundredth():
    learner = cnaps()
    films = learner.adapt(learner.init(), one_episode().support).films
    assert set(films) == {"norm1", "norm2"} and {tuple(f.shape) for f in films.values()} == {(2, 3), (2, 2)}
    assert all(0 < float(f.abs().max()) < 0.01 for f in films.values())


def test_the_modulation_by_hand():
    """Scale and shift of each norm layer, applied in a network that is written out."""
    learner, (support, query) = cnaps(), one_episode()
    theta = generic(learner)
    parts, model = part(theta, "cnaps."), smooth_conv("layer", None)
    model.load_state_dict(own(model, theta))

    def layers(name: str, x: torch.Tensor) -> torch.Tensor:
        hidden = (parts[f"{name}.0.weight"] @ x + parts[f"{name}.0.bias"]).clamp(min=0)
        return parts[f"{name}.1.weight"] @ hidden + parts.get(f"{name}.1.bias", torch.zeros(()))

    with torch.no_grad():
        z = torch.stack([layers("task", f) for f in model(support.x)]).mean(0)
        assert_close(learner.embed(theta, support), z, 1e-12)

        def modulated(x: torch.Tensor) -> torch.Tensor:
            for name, layer in model.named_children():
                x = layer(x)
                if name.startswith("norm"):
                    s, b = layers(f"film.{name}", z).chunk(2)
                    sizes = parts[f"film.{name}.size"]
                    x = (1 + sizes[0] * s)[:, None, None] * x + (sizes[1] * b)[:, None, None]
            return x

        means = class_means(modulated(support.x), support.y, WAYS)
        weights = means + torch.stack([layers("weights", m) for m in means])
        biases = torch.cat([layers("biases", m) for m in means])
        wanted = modulated(query.x) @ weights.T / math.sqrt(8) + biases
    assert_close(learner.predict(theta, learner.adapt(theta, support), query.x), wanted, 1e-11)


def test_the_task_is_read_without_its_labels():
    learner, (support, _) = cnaps(), one_episode()
    theta, order = generic(learner), torch.randperm(len(support.x))
    other = Batch(support.x[order], support.y.flip(0))
    assert_close(learner.embed(theta, other), learner.embed(theta, support), 1e-12)


def test_the_penalty_is_on_the_sizes_alone():
    learner, episode = cnaps(penalty=0.0), one_episode()
    theta = generic(learner)
    sizes = torch.cat([v.flatten() for n, v in theta.items() if n.endswith(".size")])
    assert len(sizes) == 10
    penalised = dataclasses.replace(learner, penalty=0.5)
    apart = penalised.meta_loss(theta, episode) - learner.meta_loss(theta, episode)
    assert_close(apart, 0.5 * (sizes**2).sum(), 1e-12)


def test_a_frozen_extractor_is_no_part_of_theta_and_travels_in_the_file(tmp_path):
    encoder = qs.nn.conv4(channels=1, filters=4, size=16, downsample="pool")
    learner = qs.CNAPs(encoder, 4, ways=WAYS, embedding=4, freeze=True)
    assert all(name.startswith("cnaps.") for name in learner.init())
    assert all(p.requires_grad for p in encoder.parameters())  # the caller's network is as it was
    trained = qs.train(learner, clusters((1, 16, 16)), iterations=3, meta_batch=2, engine="loop", progress=False)
    for name, value in learner.encoder.named_parameters():
        assert torch.equal(value, encoder.get_parameter(name))
    trained.save(tmp_path / "frozen.qs")
    again = qs.load(tmp_path / "frozen.qs")
    x, y = mapping.unstack(clusters((1, 16, 16)).sample(1))[0].support
    assert isinstance(again, qs.Trained)
    assert torch.equal(again.adapt(x, y)(x), trained.adapt(x, y)(x))


def test_a_set_encoder_of_its_own_reads_the_task():
    torch.manual_seed(0)
    reader = nn.Sequential(nn.Flatten(), nn.Linear(36, 8))
    learner = cnaps(set_encoder=reader)
    theta, (support, _) = generic(learner), one_episode()
    assert {"set_encoder.1.weight", "set_encoder.1.bias"} <= theta.keys()
    other = {n: v + (1.0 if n.startswith("conv1") else 0.0) for n, v in theta.items()}
    assert torch.equal(learner.embed(other, support), learner.embed(theta, support))
    other = {n: v + (1.0 if n.startswith("set_encoder") else 0.0) for n, v in theta.items()}
    assert not torch.equal(learner.embed(other, support), learner.embed(theta, support))
    with pytest.raises(ConfigError, match=r"width=8 promises features \[n, 8\], but the encoder gives \[6, 5\]"):
        wrong = cnaps(set_encoder=nn.Sequential(nn.Flatten(), nn.Linear(36, 5)))
        wrong.adapt(wrong.init(), support)


@pytest.mark.parametrize(
    ("layers", "names"),
    [("", ["norm1", "norm2"]), ("conv*", ["conv1", "conv2"]), ("norm2, conv1", ["conv1", "norm2"])],
)
def test_layers_are_named_by_patterns(layers, names):
    assert conditioned_layers(smooth_conv("batch", None), layers) == names


def test_layers_where_nobody_says():
    assert conditioned_layers(smooth_conv("none", None)) == ["conv1", "conv2"]
    assert conditioned_layers(qs.nn.mlp(4, None, hidden=(3, 3))) == ["layer1", "layer2"]
    with pytest.raises(ConfigError, match="no norm, convolution or linear layer"):
        conditioned_layers(nn.Flatten())
    with pytest.raises(ConfigError, match=r"no layer with channels matches 'gelu\*'; there are conv1, conv2"):
        cnaps("none", layers="gelu*")


def test_ways_may_be_others_at_test():
    learner = qs.CNAPs(qs.nn.mlp(4, None, hidden=(5,)), 5, ways=WAYS, embedding=4)
    score = qs.evaluate(qs.Trained(learner, generic(learner)), clusters(ways=5, shots=3), episodes=3, engine="loop")
    assert score.protocol.ways == 5


def test_recipes_size_the_family_to_the_tasks():
    torch.set_default_dtype(torch.float32)  # as the images have it
    glyphs = qs.tasks.glyphs("val", ways=3, shots=1, queries=2)
    for cls in (qs.CNAPs, qs.CNP, qs.ANP):
        built = recipes.build_learner(cls, glyphs, {}, {"filters": 8})
        assert built.width == 8 and built.ways == 3  # type: ignore[attr-defined]
    waves = qs.tasks.sinusoid()
    for cls in (qs.CNP, qs.ANP):
        built = recipes.build_learner(cls, waves, {}, {"hidden": (7, 9)})
        assert (built.width, built.outputs, built.ways) == (9, 1, None)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="CNAPs is for classification"):
        recipes.build_learner(qs.CNAPs, waves, {}, {})
