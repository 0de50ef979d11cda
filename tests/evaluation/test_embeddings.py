"""Embeddings of tasks: planes and neighbours by closed forms, facts that belong to the very tasks, and the figure."""

from __future__ import annotations

import dataclasses
import importlib.util
import json

import numpy as np
import pytest
import torch
from PIL import Image
from problems import assert_close, clusters
from torch import nn

import quickstudy as qs
from quickstudy.base import seeds
from quickstudy.errors import ConfigError, DataError
from quickstudy.evaluation.measures.embeddings import FromNeighbours, embedded
from quickstudy.learner import Batch
from quickstudy.report.sections.embeddings import conclusion
from quickstudy.tasks.classes import ClassTasks, stack_classes

PROTOCOL = qs.Protocol("CNP", "sinusoid", "test", None, 10, 50, "embeddings of tasks", 40, 1, False, "none")


def lettered(sizes: dict[str, int], **given: int) -> ClassTasks:
    """Groups of classes, whose examples are noise around the number of their group."""
    names = [f"{group}/{i}" for group, size in sizes.items() for i in range(size)]
    numbers = {group: float(i) for i, group in enumerate(sizes)}
    examples, starts = stack_classes([numbers[n.partition("/")[0]] + 0.01 * torch.randn(6, 4) for n in names])
    return ClassTasks(examples, starts, names, **{"ways": 2, "shots": 2, "queries": 2} | given)


# --- the numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("double")
def test_the_plane_of_pca_is_that_of_the_covariance():
    vectors = torch.randn(40, 5) @ torch.diag(torch.tensor([5.0, 3.0, 1.0, 0.5, 0.1])) + 7
    found = embedded(vectors, {}, PROTOCOL)
    values, axes = np.linalg.eigh(np.cov(vectors.numpy().T))
    places = (vectors - vectors.mean(0)).numpy() @ axes[:, [-1, -2]]
    assert_close(found.planes["PCA"].abs(), torch.from_numpy(np.abs(places)), 1e-8)
    assert found.share == pytest.approx(values[-2:].sum() / values.sum(), rel=1e-9) and found.length == 5


@pytest.mark.usefixtures("double")
def test_the_planes_of_one_number_and_of_none():
    line = torch.arange(12.0)[:, None]
    found = embedded(line, {"place": tuple(range(12))}, PROTOCOL)
    assert_close(found.planes["PCA"][:, 0].abs(), (line[:, 0] - 5.5).abs(), 1e-12)
    assert not found.planes["PCA"][:, 1].any() and found.share == pytest.approx(1)
    still = embedded(torch.ones(12, 3), {"place": tuple(range(12))}, PROTOCOL)
    assert not still.planes["PCA"].any() and still.share == 0


@pytest.mark.usefixtures("double")
def test_neighbours_on_a_line_by_hand():
    """Five nearest of the point i, far from the ends: i-2, i-1, i+1, i+2 and one of i-3, i+3."""
    place = torch.arange(100.0)
    found = embedded(
        place[:, None], {"place": tuple(place.tolist()), "noise": tuple(torch.randn(100).tolist())}, PROTOCOL
    )
    assert 0.999 < found.from_neighbours["place"].value < 1
    assert found.from_neighbours["noise"].value < 0.3
    blocks = tuple(f"block {i // 10}" for i in range(100))
    fit = embedded(place[:, None], {"block": blocks}, PROTOCOL).from_neighbours["block"]
    assert fit.chance == pytest.approx(9 / 99) and 0.75 < fit.value < 0.95


def test_no_task_is_a_neighbour_of_itself():
    names = tuple(f"task {i}" for i in range(12))
    assert embedded(torch.randn(12, 3), {"name": names}, PROTOCOL).from_neighbours["name"] == (0, 0)


def test_a_fact_that_is_the_same_everywhere_tells_nothing():
    found = embedded(torch.randn(12, 3), {"accuracy": (1.0,) * 12, "other": tuple(range(12))}, PROTOCOL)
    assert set(found.facts) == set(found.from_neighbours) == {"other"}


@pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="scikit-learn is not installed")
@pytest.mark.filterwarnings("ignore")
def test_tsne_where_scikit_learn_is_present():
    apart = torch.cat([torch.randn(30, 4), torch.randn(30, 4) + 100])
    places = embedded(apart, {}, PROTOCOL).planes["t-SNE"]
    centres = places[:30].mean(0), places[30:].mean(0)
    assert float((centres[0] - centres[1]).norm()) > float(places[:30].std(0).norm())


# --- facts -----------------------------------------------------------------------------------------------------------


def test_the_facts_of_sinusoids_are_those_of_the_tasks_that_are_drawn():
    tasks = qs.tasks.sinusoid("test", shots=4, queries=3, noise=0.0)
    facts = tasks.facts(50, seeds.generator(3, "test"))
    support, query = tasks.sample(50, seeds.generator(3, "test"))
    for batch in (support, query):
        assert_close(batch.y, facts["amplitude"][:, None, None] * (batch.x + facts["phase"][:, None, None]).sin(), 1e-6)


def test_noise_is_added_to_the_same_waves():
    plain, noisy = (qs.tasks.sinusoid("test", 40, 40, noise=noise) for noise in (0.0, 0.5))
    a, b = (tasks.sample(100, seeds.generator(3, "test")) for tasks in (plain, noisy))
    assert torch.equal(a.support.x, b.support.x) and plain.name == "sinusoid"
    added = torch.cat([b.support.y - a.support.y, b.query.y - a.query.y])
    assert float(added.std()) == pytest.approx(0.5, rel=0.03) and abs(float(added.mean())) < 0.02
    assert noisy.describe()["name"] == "sinusoid with noise 0.5"
    with pytest.raises(DataError, match="noise is a standard deviation"):
        qs.tasks.sinusoid(noise=-1.0)


def test_grouped_tasks_stay_within_a_group_and_say_which():
    tasks = lettered({"Greek": 4, "Latin": 3, "Runes": 1, "Kanji": 9}, ways=3).replace(grouped=True)
    assert tasks.groups == ["Greek", "Kanji", "Latin"]
    support = tasks.sample(300, seeds.generator(0, "test")).support
    groups = tasks.facts(300, seeds.generator(0, "test"))["group"]
    number = {"Greek": 0, "Latin": 1, "Kanji": 3}
    assert torch.equal(support.x.mean((1, 2)).round(), torch.tensor([float(number[g]) for g in groups]))
    assert all(80 < groups.count(name) < 120 for name in number)  # 100 each, deviation 8
    assert tasks.describe()["name"] == "classes within groups" and not tasks.replace(grouped=False).facts(3)


def test_tasks_are_drawn_as_before_where_nobody_groups():
    tasks = lettered({"Greek": 4, "Latin": 3})
    chosen = torch.rand(5, 7, generator=seeds.generator(0, "test")).argsort(1)[:, :2]
    assert torch.equal(tasks._chosen(5, seeds.generator(0, "test")), chosen)


def test_grouping_without_groups_is_refused():
    with pytest.raises(DataError, match="grouped tasks need 3 classes named alike"):
        clusters().replace(grouped=True)
    assert clusters().groups == []


# --- measuring -------------------------------------------------------------------------------------------------------


def cnp() -> qs.Trained:
    learner = qs.CNP(nn.Flatten(), 1, representation=16)
    return qs.Trained(learner, learner.init())


def test_the_vectors_are_those_of_the_learner_and_the_facts_those_of_the_tasks():
    trained, tasks = cnp(), qs.tasks.sinusoid("test", shots=5)
    found = qs.task_embeddings(trained, tasks, episodes=30, seed=4)
    assert found.vectors is not None and found.vectors.shape == (30, 16) and found.protocol.seed == 4
    for i in (0, 26):
        x, y = (t[0] for t in tasks.sample(1, seeds.generator(4, "test", i)).support)
        assert_close(found.vectors[i].float(), trained.learner.embed(trained.theta, Batch(x, y)), 1e-6)  # type: ignore[attr-defined]
        assert found.facts["amplitude"][i] == float(tasks.facts(1, seeds.generator(4, "test", i))["amplitude"])
    done: list[int] = []
    qs.task_embeddings(trained, tasks, episodes=30, progress=done.append)
    assert sum(done) == 30


def test_classes_within_groups_are_told_apart():
    tasks = lettered({"Greek": 4, "Latin": 3, "Kanji": 9}).replace(grouped=True)
    learner = qs.CNAPs(qs.nn.mlp(4, None, hidden=(5,), activation="tanh"), 5, ways=2, embedding=4)
    found = qs.task_embeddings(qs.Trained(learner, learner.init()), tasks, episodes=40)
    assert found.from_neighbours["group"].value > 0.95 and found.from_neighbours["group"].chance < 0.5
    assert "Tasks of one group lie together" in conclusion(found)


def test_of_tasks_without_facts_the_score_is_known():
    learner = qs.CNAPs(qs.nn.mlp(4, None, hidden=(5,)), 5, ways=3, embedding=4)
    found = qs.task_embeddings(qs.Trained(learner, learner.init()), clusters(spread=3.0), episodes=20)
    score = qs.evaluate(qs.Trained(learner, learner.init()), clusters(spread=3.0), episodes=20, engine="loop")
    assert found.facts["accuracy"] == tuple(score.values.tolist())


@pytest.mark.parametrize(
    ("learner", "length"),
    [
        (lambda: qs.CAVIA(qs.nn.mlp(4, 3), context=7), 7),
        (lambda: qs.LEO(nn.Flatten(), 4, ways=3, latent=5), 5),
        (lambda: qs.CNAPs(qs.nn.mlp(4, None), 40, ways=3), 64),
        (lambda: qs.CNP(nn.Flatten(), 4, ways=3, representation=9), 9),
        (lambda: qs.ANP(nn.Flatten(), 4, ways=3, representation=8), 8),
    ],
    ids=["cavia", "leo", "cnaps", "cnp", "anp"],
)
@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_learners_embed_a_task(learner, length, engine):
    built, episodes = learner(), clusters().sample(3)
    theta = built.init()
    found = qs.map_tasks(lambda e: built.embed(theta, e.support), episodes, engine)
    assert found.shape == (3, length) and torch.isfinite(found).all()


def test_the_embedding_of_cavia_is_its_context():
    learner = qs.CAVIA(qs.nn.mlp(1, 1), loss=qs.mse_loss, context=4, lr=0.1)
    theta, support = learner.init(), Batch(*(t[0] for t in qs.tasks.sinusoid().sample(1).support))
    assert torch.equal(learner.embed(theta, support), learner.adapt(theta, support)["context"])


def test_wrong_settings_are_refused():
    learner = qs.MAML(torch.nn.Linear(2, 3))
    with pytest.raises(ConfigError, match="MAML makes no vector"):
        qs.task_embeddings(qs.Trained(learner, {}), clusters())
    with pytest.raises(ConfigError, match="at least 10 episodes, got 5"):
        qs.task_embeddings(cnp(), qs.tasks.sinusoid(), episodes=5)


# --- the value -------------------------------------------------------------------------------------------------------


def some(groups: bool) -> qs.TaskEmbeddings:
    fact = tuple(f"a$x^2$ {i % 20}" for i in range(40)) if groups else tuple(float(i) for i in range(40))
    return embedded(torch.randn(40, 3, generator=seeds.generator(0, "x")), {"kind": fact}, PROTOCOL)


@pytest.mark.parametrize("groups", [True, False])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_embeddings_survive_json_print_and_are_drawn(groups, tmp_path):
    one = some(groups)
    plain = json.loads(json.dumps(one.to_dict(), allow_nan=False))
    again = qs.TaskEmbeddings.from_dict(plain)
    assert again.to_dict() == one.to_dict() and again.facts == one.facts and again.vectors is None
    assert "kind: " in str(one) and "40 tasks" in str(one)
    one.plot(tmp_path / "figure.png")
    one.plot(tmp_path / "figure.svg")
    assert np.asarray(Image.open(tmp_path / "figure.png").convert("L")).std() > 5
    assert ("a$x^2$" in (tmp_path / "figure.svg").read_text()) == groups
    for broken in ({"facts": {"kind": [1]}}, {"planes": {"PCA": [[1, 2, 3]]}}, {"from_neighbours": {}}):
        with pytest.raises(ValueError):
            qs.TaskEmbeddings.from_dict(plain | broken)


@pytest.mark.parametrize(
    ("fit", "said"),
    [
        (FromNeighbours(0.95, 0.0), "can be read off its 5 neighbours: R² 0.95"),
        (FromNeighbours(0.5, 0.0), "tells the kind in part"),
        (FromNeighbours(-0.1, 0.0), "hardly tells the kind"),
    ],
)
def test_the_conclusion_follows_the_numbers(fit, said):
    assert said in conclusion(dataclasses.replace(some(False), from_neighbours={"kind": fit}))
