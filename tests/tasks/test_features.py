"""Tasks on the features of a frozen network: the same result as with the network inside, for a look per example."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from problems import assert_close, random_episodes, snapshot
from torch import Tensor, nn

import quickstudy as qs
from quickstudy.engine import mapping
from quickstudy.errors import ConfigError, DataError, FileFormatError
from quickstudy.tasks.features import extract


class Counting(nn.Module):
    """A small convolutional network that counts the examples it has seen, in whatever copy of it."""

    seen: list[int] = []  # noqa: RUF012 (shared on purpose)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, 3, stride=3),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(3),
            nn.Flatten(),
        )
        norm = self.layers[1]
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return self.layers(x)


@pytest.fixture
def extractor() -> Counting:
    Counting.seen.clear()
    return Counting()


def glyphs(split: str = "val", **sizes: int) -> qs.tasks.ClassTasks:
    return qs.tasks.glyphs(split, **{"ways": 5, "shots": 1, "queries": 3} | sizes)


def head() -> nn.Module:
    torch.manual_seed(4)
    return qs.nn.mlp(54, hidden=(16,))


LEARNERS: dict[str, Any] = {
    "r2d2": lambda encoder: qs.R2D2(encoder),
    "protonet": lambda encoder: qs.ProtoNet(encoder),
    "metaoptnet": lambda encoder: qs.MetaOptNet(encoder),
}


def trained_on(learner: qs.learner.Learner, tasks: Any, **settings: Any) -> qs.Trained:  # type: ignore[name-defined]
    sizes = {"iterations": 5, "meta_batch": 2, "engine": "loop", "progress": False}
    return qs.train(learner, tasks, **sizes | settings)


@pytest.mark.parametrize("name", LEARNERS)
def test_training_on_features_is_training_with_the_frozen_network_inside(extractor, name):
    tasks = glyphs()
    on_features = trained_on(LEARNERS[name](head()), qs.tasks.features(tasks, extractor))
    frozen = Counting().eval().requires_grad_(False)
    inside = trained_on(LEARNERS[name](nn.Sequential(OrderedDict(frozen=frozen, head=head()))), tasks)
    for key, value in on_features.theta.items():
        same = inside.theta[key if key in inside.theta else f"head.{key}"]
        assert_close(value, same, 1e-4)
    start = head().layer1.weight.detach()  # type: ignore[union-attr]
    assert float((on_features.theta["layer1.weight"] - start).abs().max()) > 1e-3
    score = qs.evaluate(on_features, qs.tasks.features(glyphs("test"), extractor), episodes=20)
    assert abs(score.mean - qs.evaluate(inside, glyphs("test"), episodes=20).mean) < 0.005


def test_the_extractor_sees_each_example_once(extractor):
    tasks = qs.tasks.features(glyphs(), extractor, batch=300)
    assert sum(Counting.seen) == len(tasks.examples) == 100 * 20 and max(Counting.seen) == 300
    trained_on(qs.R2D2(head()), tasks)
    qs.evaluate(qs.Trained(qs.R2D2(head()), qs.R2D2(head()).init()), tasks, episodes=3)
    assert sum(Counting.seen) == 100 * 20


def test_features_are_those_of_the_network_in_eval_mode_and_episodes_are_the_same(extractor):
    tasks, raw = qs.tasks.features(glyphs(), extractor), glyphs()
    ours, theirs = (source.sample(2, torch.Generator().manual_seed(1)) for source in (tasks, raw))
    with torch.no_grad():
        wanted = extractor.eval()(theirs.support.x.flatten(0, 1)).unflatten(0, (2, 5))
    assert_close(ours.support.x, wanted, 1e-5)
    assert torch.equal(ours.query.y, theirs.query.y)
    assert tasks.describe() == raw.describe() | {"extractor": "Counting"}


def test_the_users_network_is_not_touched(extractor):
    unchanged = snapshot(extractor)
    tasks = qs.tasks.features(glyphs(), extractor)
    assert unchanged() and extractor.training and all(p.requires_grad for p in extractor.parameters())
    extractor.layers[0].weight.data.zero_()
    assert float(tasks.extractor.layers[0].weight.abs().max()) > 0  # type: ignore[union-attr]


def raw_support() -> tuple[Tensor, list[str]]:
    """Images as a user has them, and class names."""
    images = glyphs("test").examples[:100:4]
    return images, [f"letter {i // 5}" for i in range(25)]


def test_what_was_trained_takes_raw_inputs(extractor):
    trained = trained_on(qs.R2D2(head()), qs.tasks.features(glyphs(), extractor))
    x, y = raw_support()
    predictor = trained.adapt(x, y)
    z = extract(trained.extractor, x.float() / 255)
    phi = trained.learner.adapt(trained.theta, qs.Batch(z, torch.arange(5).repeat_interleave(5)))
    with torch.no_grad():
        wanted = trained.learner.predict(trained.theta, phi, z)
        assert_close(predictor(x.float() / 255), wanted, 1e-5)
    assert predictor.predict(x) == [f"letter {i}" for i in wanted.argmax(1).tolist()]
    assert predictor.predict_proba(x.numpy()).shape == (25, 5)
    assert trained.embed(x, y).shape == (16,)
    assert predictor.train()(x[:1].float() / 255).shape == (1, 5), "a predictor in training mode wakes the extractor"


def test_files_hold_the_extractor(extractor, tmp_path):
    trained = trained_on(qs.R2D2(head()), qs.tasks.features(glyphs(), extractor))
    predictor, (x, _) = trained.adapt(*raw_support()), raw_support()
    trained.save(tmp_path / "learner.qs")
    predictor.save(tmp_path / "predictor.qs")
    with pytest.raises(FileFormatError, match=r"extractor=\.\.\."):
        qs.load(tmp_path / "learner.qs")
    other = Counting()
    for value in other.parameters():
        value.data.normal_()
    unchanged = snapshot(other)
    again = qs.load(tmp_path / "learner.qs", extractor=other)
    assert torch.equal(again.adapt(*raw_support()).predict_proba(x), predictor.predict_proba(x))  # type: ignore[union-attr]
    assert torch.equal(qs.load(tmp_path / "predictor.qs", extractor=other).predict_proba(x), predictor.predict_proba(x))  # type: ignore[union-attr]
    assert unchanged()


def test_a_network_of_the_library_needs_no_help_at_loading(tmp_path):
    extractor = qs.nn.conv4(filters=4, norm="layer")
    trained = trained_on(qs.R2D2(qs.nn.mlp(16, hidden=(8,))), qs.tasks.features(glyphs(), extractor))
    predictor, (x, _) = trained.adapt(*raw_support()), raw_support()
    predictor.save(tmp_path / "predictor.qs")
    assert torch.equal(qs.load(tmp_path / "predictor.qs").predict_proba(x), predictor.predict_proba(x))  # type: ignore[union-attr]


def test_a_run_resumes_and_keeps_its_extractor(extractor, tmp_path):
    tasks = qs.tasks.features(glyphs(), extractor)
    whole = trained_on(qs.R2D2(head()), tasks)
    trained_on(qs.R2D2(head()), tasks, iterations=2, out=tmp_path)
    resumed = trained_on(qs.R2D2(head()), tasks, out=tmp_path, resume=True)
    assert all(torch.equal(value, whole.theta[name]) for name, value in resumed.theta.items())
    assert qs.load(tmp_path, extractor=Counting()).extractor is not None  # type: ignore[union-attr]


def test_a_predictor_on_features_exports(extractor):
    predictor, (x, _) = None, raw_support()
    predictor = trained_on(qs.R2D2(head()), qs.tasks.features(glyphs(), extractor)).adapt(*raw_support())
    x = x.float() / 255
    exported = torch.export.export(predictor, (x,))
    assert_close(exported.module()(x), predictor(x), 1e-5)


def test_pretraining_works_on_features(extractor):
    tasks = qs.tasks.features(glyphs(), extractor)
    trained = trained_on(qs.SimpleShot(qs.nn.mlp(54, len(tasks.classes), hidden=(16,))), tasks)
    assert trained.extractor is not None
    assert trained.adapt(*raw_support()).predict_proba(raw_support()[0]).shape == (25, 5)


def test_tasks_from_arrays():
    extractor = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    keys = ("support", "support_labels", "query", "query_labels")
    tasks = [dict(zip(keys, [*e.support, *e.query], strict=True)) for e in mapping.unstack(random_episodes(4))]
    source = qs.tasks.from_arrays(tasks)
    found = qs.tasks.features(source, extractor, batch=5)
    ours, theirs = (s.sample(3, torch.Generator().manual_seed(1)) for s in (found, source))
    assert_close(ours.query.x, extractor(theirs.query.x).detach(), 1e-6)
    assert torch.equal(ours.support.y, theirs.support.y)


def test_intervals_are_those_of_the_features():
    extractor, learner = nn.Linear(4, 3), qs.CNP(nn.Flatten(), 3, representation=8)
    (x, y), query = mapping.unstack(random_episodes(1, ways=None))[0]
    theta = learner.init()
    ours = qs.Trained(learner, theta, extractor=extractor).adapt(x, y).predict_interval(query.x)
    plain = qs.Trained(learner, theta).adapt(extractor(x).detach(), y).predict_interval(extractor(query.x).detach())
    for one, other in zip(ours, plain, strict=True):
        assert_close(one, other, 1e-5)


def test_features_may_be_maps():
    extractor = qs.nn.conv4(filters=4, norm="layer", maps=True)
    tasks = qs.tasks.features(glyphs(), extractor)
    assert tasks.examples.shape[1:] == (4, 7, 7)
    learner = qs.RelationNet(nn.Conv2d(4, 3, 3, padding=1), qs.nn.relation((3, 7, 7), filters=4))
    assert trained_on(learner, tasks).adapt(*raw_support()).predict_proba(raw_support()[0]).shape == (25, 5)


def test_what_cannot_be_extracted_is_refused(extractor):
    with pytest.raises(ConfigError, match="normalises by whatever batch"):
        qs.tasks.features(glyphs(), qs.nn.conv4(filters=4))
    with pytest.raises(ConfigError, match="Sinusoids draws inputs anew"):
        qs.tasks.features(qs.tasks.sinusoid(), nn.Linear(1, 4))  # type: ignore[type-var]
    with pytest.raises(ConfigError, match="must give features"):
        qs.tasks.features(glyphs(), nn.Sequential(nn.Flatten(0, 2), nn.Linear(28, 4)), batch=100)
    with pytest.raises(ConfigError, match="batch"):
        qs.tasks.features(glyphs(), extractor, batch=0)


def test_raw_tasks_are_refused_with_their_shape(extractor):
    trained = trained_on(qs.R2D2(head()), qs.tasks.features(glyphs(), extractor))
    with pytest.raises(DataError, match="cannot read this task"):
        qs.evaluate(trained, glyphs("test"), episodes=2)


def test_models_of_torchvision_are_extractors():
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    model = models.resnet18(weights=None)
    model.fc = nn.Identity()
    extractor = nn.Sequential(nn.Upsample((64, 64)), nn.Conv2d(1, 3, 1), model)
    tasks = qs.tasks.features(glyphs(), extractor)
    assert tasks.examples.shape[1:] == (512,)
    assert trained_on(qs.R2D2(qs.nn.mlp(512, hidden=(16,))), tasks).adapt(*raw_support()) is not None
