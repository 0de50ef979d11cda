"""Inputs and answers of several tensors: dicts, tuples, several targets, on every engine and in every check."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import assert_close, cores, meta_gradient
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

import quickstudy as qs
from quickstudy.engine import agreement, numerics, ranks
from quickstudy.engine.choice import choose
from quickstudy.engine.choice.work import Work
from quickstudy.engine.engines import BY_NAME, ENGINES
from quickstudy.engine.programs import program
from quickstudy.episodes import part_of, unstack
from quickstudy.errors import DataError
from quickstudy.learner import Batch, Episode, Theta

pytestmark = pytest.mark.usefixtures("double")

LR, STEPS, WORDS = 0.2, 3, 9


class Reader(nn.Module):
    """Token numbers [n, 5] and how much each counts [n, 5] -> logits [n, 3], as a language model is called."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(WORDS, 4), nn.Linear(4, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        weight = mask[..., None] / mask.sum(1)[:, None, None]
        return self.head(torch.tanh((weight * self.words(tokens)).sum(1)))


class Twofold(nn.Module):
    """Numbers [n, 4] -> a class of 3 and a value."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.kind, self.size = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = torch.tanh(self.body(x))
        return {"kind": self.kind(z), "size": self.size(z)}


def both(output: dict[str, Tensor], y: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(output["kind"], y["kind"]) + 0.5 * F.mse_loss(output["size"], y["size"])


def texts(tasks: int, n: int, form: type = dict) -> Batch:
    tokens, mask = torch.randint(WORDS, (tasks, n, 5)), torch.rand(tasks, n, 5) + 0.1
    x: Any = {"tokens": tokens, "mask": mask} if form is dict else (tokens, mask)
    return Batch(x, torch.arange(n).repeat(tasks, 1) % 3)


def twofold(tasks: int, n: int) -> Batch:
    y = {"kind": torch.arange(n).repeat(tasks, 1) % 3, "size": torch.randn(tasks, n, 1)}
    return Batch(torch.randn(tasks, n, 4), y)


def case(name: str, tasks: int = 3) -> tuple[qs.MAML, Episode]:
    torch.manual_seed(0)
    if name == "targets":
        return qs.MAML(Twofold(), both, LR, STEPS), Episode(twofold(tasks, 6), twofold(tasks, 4))
    form = tuple if name == "tuple" else dict
    return qs.MAML(Reader(), lr=LR, steps=STEPS), Episode(texts(tasks, 6, form), texts(tasks, 4, form))


CASES = ("dict", "tuple", "targets")


def by_hand(learner: qs.MAML, theta: Theta, episodes: Episode) -> tuple[Tensor, Theta]:
    """MAML by plain autograd, one task after the other, without any of our code."""
    leaves = {name: value.clone().requires_grad_() for name, value in theta.items()}
    losses = []
    for i in range(len(pytree.tree_leaves(episodes)[0])):
        support, query = pytree.tree_map(lambda t, i=i: t[i], episodes)
        phi = leaves
        for step in range(learner.steps + 1):
            x, y = support if step < learner.steps else query
            args, named = ((), x) if isinstance(x, dict) else (x if isinstance(x, tuple) else (x,), {})
            loss = learner.loss(functional_call(learner.model, phi, args, named), y)
            if step < learner.steps:
                slopes = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
                phi = {name: v - LR * g for (name, v), g in zip(phi.items(), slopes, strict=True)}
        losses.append(loss)
    mean = torch.stack(losses).mean()
    return mean.detach(), dict(zip(leaves, torch.autograd.grad(mean, list(leaves.values())), strict=True))


@pytest.mark.parametrize("name", ENGINES[1:])
@pytest.mark.parametrize("which", CASES)
def test_every_engine_gives_the_meta_gradient_of_plain_autograd(which: str, name: str) -> None:
    learner, episodes = case(which)
    if BY_NAME[name].compiled:  # compiling is what takes long
        if which == "tuple":
            pytest.skip("the compiler gets the program of the dict")
        learner = dataclasses.replace(learner, steps=1)
    theta = learner.init()
    wanted = by_hand(learner, theta, episodes)
    found = meta_gradient(learner, theta, episodes, name)
    assert_close(found[0], wanted[0], 1e-10)
    assert_close(found[1], wanted[1], 1e-10)


@pytest.mark.parametrize("adjoint", ["remat", "mixed", "first_order", "implicit"])
@pytest.mark.parametrize("which", CASES)
def test_every_adjoint_is_the_same_under_vmap_and_in_the_loop(which: str, adjoint: str) -> None:
    learner, episodes = case(which)
    learner = qs.MAML(learner.model, learner.loss, 0.02, STEPS, adjoint=adjoint)
    found, wanted = (meta_gradient(learner, learner.init(), episodes, name) for name in ("vmap", "loop"))
    assert agreement.relative_difference(found, wanted) < 1e-6
    if adjoint in ("remat", "mixed"):
        exact = qs.MAML(learner.model, learner.loss, 0.02, STEPS)
        assert agreement.relative_difference(found, meta_gradient(exact, exact.init(), episodes, "loop")) < 1e-10


@pytest.mark.parametrize("which", CASES)
def test_chunks_and_lists_give_the_same_mean(which: str) -> None:
    learner, episodes = case(which, tasks=5)
    theta = learner.init()
    wanted = meta_gradient(learner, theta, episodes, "loop")
    for name in ("vmap", "replay"):
        assert_close(qs.meta_gradient(learner, theta, episodes, name, 2)[1], wanted[1], 1e-10)
    for name in ("vmap", "loop", "threads"):
        assert_close(meta_gradient(learner, theta, unstack(episodes), name)[1], wanted[1], 1e-10)  # type: ignore


@pytest.mark.parametrize("which", CASES)
def test_the_check_passes_on_every_engine(which: str) -> None:
    learner, episodes = case(which)
    found = qs.check_meta_gradient(learner, unstack(episodes)[0])
    assert found.ok and all(engine.works for engine in found.engines), str(found)
    assert found.difference < 1e-5


def test_the_check_names_the_shapes_that_do_not_fit() -> None:
    learner, episodes = case("dict")
    support, query = unstack(episodes)[0]
    short = support._replace(x={**support.x, "mask": support.x["mask"][:-1]})  # type: ignore[dict-item]
    with pytest.raises(DataError, match=r"\['tokens'\] \(6, 5\), \['mask'\] \(5, 5\)"):
        qs.check_meta_gradient(learner, Episode(short, query))
    with pytest.raises(DataError, match="NaN or infinity"):
        bad = {**support.x, "mask": support.x["mask"] / 0}  # type: ignore[dict-item]
        qs.check_meta_gradient(learner, Episode(support._replace(x=bad), query))
    with pytest.raises(DataError, match="tensors or dicts or tuples of tensors; got"):
        qs.check_meta_gradient(learner, Episode(support._replace(x={"tokens": "words"}), query))  # type: ignore


def test_a_program_is_made_anew_when_the_structure_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tensors in a dict of two names, in the same dict in another order, and in a tuple."""
    made, own = [], program._made
    monkeypatch.setattr(program, "_made", lambda *args: (made.append(1), own(*args))[1])
    learner, episodes = case("dict")
    (x, y), (xq, yq) = episodes
    turned = Episode(Batch(dict(reversed(x.items())), y), Batch(dict(reversed(xq.items())), yq))  # type: ignore
    as_tuple = Episode(Batch(tuple(x.values()), y), Batch(tuple(xq.values()), yq))  # type: ignore[arg-type]
    wanted = meta_gradient(learner, learner.init(), episodes, "loop")
    for count, given in ((1, episodes), (1, episodes), (2, turned), (3, as_tuple), (3, episodes)):
        found = meta_gradient(learner, learner.init(), given, "replay")
        assert agreement.relative_difference(found, wanted) < 1e-10
        assert len(made) == count


@pytest.mark.parametrize("which", CASES)
@pytest.mark.parametrize("engine", ["auto", "vmap", "replay"])
def test_an_engine_is_chosen(which: str, engine: str) -> None:
    learner, episodes = case(which)
    with cores(2):
        choice = choose.choose_engine(learner, learner.init(), episodes, engine, seed=0)
    assert choice.engine in ENGINES and (engine == "auto" or choice.engine == engine), choice.reason


def test_what_is_chosen_for_one_structure_is_not_taken_for_another() -> None:
    (learner, episodes), (other, as_tuple) = case("dict"), case("tuple")
    theta = learner.init()
    keys = {choose._key(Work(learner, theta, given), 1) for given in (episodes, as_tuple)}
    assert len(keys) == 2 and choose._key(Work(other, theta, episodes), 1) in keys


def test_whole_numbers_stay_whole_and_images_are_found_in_nested_inputs() -> None:
    _, episodes = case("dict")
    exact = agreement.to_double(pytree.tree_map(lambda t: t.float() if t.is_floating_point() else t, episodes))
    assert exact.support.x["tokens"].dtype == torch.int64  # type: ignore[call-overload]
    assert exact.support.x["mask"].dtype == torch.float64  # type: ignore[call-overload]
    images = Batch({"photo": torch.randn(2, 3, 4, 5, 6), "age": torch.randn(2, 3, 1)}, torch.zeros(2, 3))
    found = numerics.images_channels_last(Episode(images, images)).query.x  # type: ignore[union-attr]
    assert found["photo"][0].is_contiguous(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert torch.equal(found["photo"], images.x["photo"]) and torch.equal(found["age"], images.x["age"])  # type: ignore


@pytest.mark.parametrize("which", CASES)
def test_bfloat16_is_on_for_nested_inputs(which: str) -> None:
    learner, episodes = case(which)
    learner = qs.MAML(learner.model.float(), learner.loss, LR, STEPS)
    episodes = pytree.tree_map(lambda t: t.float() if t.is_floating_point() else t, episodes)
    exact = qs.meta_gradient(learner, learner.init(), episodes)
    off = agreement.relative_difference(qs.meta_gradient(learner, learner.init(), episodes, precision="bf16"), exact)
    assert 1e-4 < off < 0.3


def test_map_tasks_gives_nested_results() -> None:
    learner, episodes = case("targets")
    theta = learner.init()
    found = {
        name: qs.map_tasks(lambda e: learner.predict(theta, theta, e.query.x), episodes, name)
        for name in BY_NAME
        if not BY_NAME[name].recorded
    }
    for each in found.values():
        assert each["kind"].shape == (3, 4, 3) and each["size"].shape == (3, 4, 1)  # type: ignore[index]
        assert agreement.relative_difference(each, found["loop"]) < 1e-12


def test_a_plan_of_nested_inputs() -> None:
    learner, episodes = case("dict", tasks=4)
    found = qs.plan(learner, _Fixed(episodes), meta_batch=4, engine="vmap")
    assert {one.chunk for one in found} == {1, 2, None} and {one.adjoint for one in found} == {"unroll", "remat"}


class _Fixed:
    def __init__(self, episodes: Episode) -> None:
        self.episodes = episodes

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episode:
        return self.episodes


# --- what the ranks draw ---------------------------------------------------------------------------------------------


class _OnPolicy:
    """Its tasks are those of theta: inputs filled with theta's number."""

    on_policy = True

    def sample(self, n: int, generator: torch.Generator, learner: Any = None, theta: Any = None) -> Episode:
        x = theta["w"].expand(n, 2, 1) + torch.arange(n)[:, None, None]
        return Episode(Batch({"x": x}, x), Batch({"x": x}, x))


def test_a_source_on_policy_is_drawn_with_learner_and_theta(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, _ = case("dict")
    whole = ranks.draw(_OnPolicy(), 5, torch.Generator(), learner, {"w": torch.full((1,), 7.0)})  # type: ignore[arg-type]
    assert torch.equal(whole.support.x["x"][:, 0, 0], 7.0 + torch.arange(5))  # type: ignore[union-attr,call-overload]
    with pytest.raises(qs.errors.ConfigError, match="learner and theta"):
        ranks.draw(_OnPolicy(), 5, torch.Generator())  # type: ignore[arg-type]
    monkeypatch.setattr(ranks, "size", lambda: 2)
    monkeypatch.setattr(ranks, "rank", lambda: 1)
    share = ranks.draw(_OnPolicy(), 5, torch.Generator(), learner, {"w": torch.full((1,), 7.0)})  # type: ignore[arg-type]
    assert torch.equal(share.support.x["x"], part_of(whole, range(3, 5)).support.x["x"])  # type: ignore
