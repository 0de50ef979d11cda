"""Engines agree, choose themselves, and fall back without any action by the user."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import assert_close, clusters, cores, map_tasks, meta_gradient, random_episodes, snapshot
from torch import Tensor, nn

import quickstudy as qs
from benchmarks.layers.measure import ByTransform
from quickstudy.base.tracing import inside_transform
from quickstudy.engine import agreement, mapping
from quickstudy.engine.choice import race
from quickstudy.engine.engines import Engine
from quickstudy.episodes import chunks
from quickstudy.errors import ConfigError, EngineWarning
from quickstudy.learner import Batch, Episode, Learner, Theta

pytestmark = pytest.mark.usefixtures("double")

CPU = torch.device("cpu")


# --- networks that users bring ---------------------------------------------------------------------------------------


class Net(nn.Module):
    """Inputs [n, 5, 4] go through a linear map and `layer`, are averaged over time and classified.

    The linear map stands below `layer`: a wrong second derivative of a layer shows in the parameters below it.
    """

    def __init__(
        self, layer: nn.Module | None = None, read: Callable[[Any, Tensor], Any] = lambda layer, x: layer(x)
    ) -> None:
        super().__init__()
        self.below, self.layer, self.read, self.head = nn.Linear(4, 4), layer, read, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.read(self.layer, self.below(x))
        return self.head(torch.tanh((found[0] if isinstance(found, tuple) else found).mean(1)))


class OwnLayerNorm(nn.Module):
    """A layer norm through the functional form, as many published transformers write it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(4) + 0.5), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (4,), self.weight, self.bias)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.unused = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(2, 2)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.other(torch.tanh(self.one(x)))


def first_frozen() -> nn.Module:
    layers = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    layers[0].requires_grad_(False)
    return layers


def attend(layer: nn.MultiheadAttention, x: Tensor) -> Any:
    return layer(x, x, x, need_weights=False)


def by_time(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def transformer(**options: Any) -> Net:
    return Net(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, **({"dropout": 0.0} | options)))


def averaged(layer: nn.modules.batchnorm._BatchNorm) -> nn.Module:
    """With averages that differ from where they start."""
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    return layer.eval()


# name -> (how to build it, whether vmap can do it on torch 2.13)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "plain": (lambda: Net(nn.Linear(4, 4)), True),
    "lstm": (lambda: Net(nn.LSTM(4, 4, batch_first=True)), False),
    "gru": (lambda: Net(nn.GRU(4, 4, batch_first=True)), False),
    "two-layer rnn": (lambda: Net(nn.RNN(4, 4, 2, batch_first=True)), False),
    "attention": (lambda: Net(nn.MultiheadAttention(4, 2, batch_first=True), attend), True),
    "fused attention": (lambda: Net(nn.Linear(4, 4), lambda q, x: F.scaled_dot_product_attention(q(x), x, x)), True),
    "causal attention": (
        lambda: Net(nn.Linear(4, 4), lambda q, x: F.scaled_dot_product_attention(q(x), x, x, is_causal=True)),
        True,
    ),
    "transformer": (transformer, True),
    "transformer, norm first": (lambda: transformer(norm_first=True, activation="gelu"), True),
    "batch norm": (lambda: Net(nn.BatchNorm1d(4), by_time), True),
    "batch norm, none kept": (lambda: Net(nn.BatchNorm1d(4, track_running_stats=False), by_time), True),
    "batch norm, averages": (lambda: Net(averaged(nn.BatchNorm1d(4)), by_time), True),
    "batch norm 2d": (
        lambda: Net(nn.BatchNorm2d(1, track_running_stats=False), lambda norm, x: norm(x[:, None])[:, 0]),
        True,
    ),
    "layer norm": (lambda: Net(nn.LayerNorm(4)), True),
    "group norm": (lambda: Net(nn.GroupNorm(1, 5)), True),
    "tied, unused": (lambda: Net(Tied()), True),
    "frozen": (lambda: Net(first_frozen()), True),
}
# What torch differentiates wrongly under vmap without saying so: vmap must not be used, or be made right.
WRONG_UNDER_VMAP: dict[str, Callable[[], nn.Module]] = {
    "functional layer norm": lambda: Net(OwnLayerNorm()),
    "instance norm": lambda: Net(nn.InstanceNorm1d(5, affine=True)),
}
ANY = {name: build for name, (build, _) in NETWORKS.items()} | WRONG_UNDER_VMAP


def episodes_for_sequences(tasks: int = 3) -> Episode:
    return random_episodes(tasks, (5, 4))


def learner_for(name: str) -> qs.MAML:
    net = ANY[name]()
    with torch.no_grad():
        for p in net.parameters():  # away from ones and zeros
            p.add_(0.1 * torch.randn_like(p))
    return qs.MAML(net, lr=0.3, steps=2)


def choose(learner: Learner, theta: Theta, episodes: Episode, name: str) -> race.Choice:
    """The choice that `qs.train` makes."""

    def enter(engine: Engine) -> race.Entrant:
        if not engine.in_turn:
            agreement.check_engine(learner, theta, episodes, engine)
        return race.Entrant(lambda: meta_gradient(learner, theta, episodes, engine))

    return race.chosen(race.Race(enter, len(episodes.query.y), CPU), name)


def chosen_in_peace(learner: Learner, theta: Theta, episodes: Episode, name: str) -> tuple[race.Choice, list[type]]:
    """The choice, and the categories of the warnings that the user sees meanwhile."""
    torch.set_warn_always(True)  # some of torch's warnings come once per process only
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            choice = choose(learner, theta, episodes, name)
    finally:
        torch.set_warn_always(False)
    return choice, [warning.category for warning in seen]


# --- what the user asks for, and gets --------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["vmap", "threads", "auto", "replay", "replay-threads"])
@pytest.mark.parametrize("name", ANY)
def test_every_network_gets_the_loops_meta_gradient(name, wanted):
    """Second order, through whatever engine is chosen, without any action by the user."""
    learner, episodes = learner_for(name), episodes_for_sequences()
    theta = learner.init()
    unchanged = snapshot(learner.model, theta, episodes)
    training = [module.training for module in learner.model.modules()]
    loss, slope = qs.meta_gradient(learner, theta, episodes, "loop")
    choice, _ = chosen_in_peace(learner, theta, episodes, wanted)
    found_loss, found = meta_gradient(learner, theta, episodes, choice.engine)
    assert_close(found_loss, loss, 1e-9)
    assert_close(found, slope, 1e-9)
    assert any((value != 0).any() for value in slope.values())
    assert unchanged() and [module.training for module in learner.model.modules()] == training


@pytest.mark.parametrize("name", [name for name, (_, can) in NETWORKS.items() if can])
def test_vmap_runs_where_it_can_without_a_word(name):
    learner, episodes = learner_for(name), episodes_for_sequences()
    choice, seen = chosen_in_peace(learner, learner.init(), episodes, "vmap")
    assert choice == race.Choice("vmap", "as asked") and seen == []


def in_single(learner: qs.MAML, episodes: Episode) -> Episode:
    """The same in float32, where torch takes other kernels (those of oneDNN). The network is changed in place."""
    learner.model.float()
    return Episode(*(batch._replace(x=batch.x.float()) for batch in episodes))


@pytest.mark.parametrize("single", [True, False], ids=["float32", "float64"])
@pytest.mark.parametrize("name", [name for name, (_, can) in NETWORKS.items() if not can])
def test_falling_back_from_vmap_warns_once(name, single):
    """And torch's own warnings on the way stay out of sight."""
    learner, episodes = learner_for(name), episodes_for_sequences()
    episodes = in_single(learner, episodes) if single else episodes
    choice, seen = chosen_in_peace(learner, learner.init(), episodes, "vmap")
    assert choice.engine in ("loop", "threads") and choice.reason.startswith("vmap cannot: ")
    assert seen == [EngineWarning]


@pytest.mark.parametrize("name", ["lstm", "gru", "plain"])
def test_auto_falls_back_in_silence_and_tries_threads(name):
    learner, episodes = learner_for(name), episodes_for_sequences()
    with cores(2):
        choice, seen = chosen_in_peace(learner, learner.init(), episodes, "auto")
    assert seen == [] and choice.reason.startswith("fastest of loop") and "threads" in choice.reason
    assert ("vmap cannot" in choice.reason) == (not NETWORKS[name][1])


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_auto_works_where_warnings_are_errors(name):
    learner = learner_for(name)
    episodes = in_single(learner, episodes_for_sequences())
    torch.set_warn_always(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose(learner, learner.init(), episodes, "auto").engine in ("loop", "threads")


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", ["transformer", "attention", "lstm", "batch norm"])
@pytest.mark.parametrize("wanted", ["vmap", "auto"])
def test_evaluation_agrees_with_the_loop_in_both_modes(name, mode, wanted):
    """In eval mode without gradients torch takes fast paths of its own, which have no derivative under vmap."""
    learner, episodes = learner_for(name), episodes_for_sequences()
    learner.model.train(mode == "train")
    theta = learner.init()

    def measure(which: str) -> Tensor:
        return map_tasks(lambda episode: learner.meta_loss(theta, episode), episodes, which)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        choice = choose_among(measure, wanted, 3)
        assert_close(measure(choice.engine), measure("loop"), 1e-10)


@pytest.mark.parametrize("name", ["lstm", "gru", "transformer"])
def test_evaluation_works_where_warnings_are_errors(name):
    learner = learner_for(name)
    in_single(learner, episodes_for_sequences())
    learner.model.eval()
    torch.set_default_dtype(torch.float32)
    torch.set_warn_always(True)
    score = qs.evaluate(qs.Trained(learner, learner.init()), clusters((5, 4)), episodes=4, engine="auto")
    assert 0 <= score.mean <= 1


# --- random layers ---------------------------------------------------------------------------------------------------


def with_dropout() -> qs.MAML:
    return qs.MAML(nn.Sequential(nn.Linear(4, 20), nn.Tanh(), nn.Dropout(0.5), nn.Linear(20, 3)), lr=0.3, steps=1)


def one_task_many_times(times: int) -> Episode:
    one = random_episodes(1)
    return Episode(*(Batch(*(t.expand(times, *t.shape[1:]).contiguous() for t in batch)) for batch in one))


def test_dropout_agrees_between_engines_in_distribution():
    """The mean loss of one task over 600 draws, to four standard errors; and the draws differ from task to task."""
    learner, episodes = with_dropout(), one_task_many_times(600)
    theta = learner.init()
    loop, vmap = (
        map_tasks(lambda episode: learner.meta_loss(theta, episode), episodes, name) for name in ("loop", "vmap")
    )
    error = ((loop.var() + vmap.var()) / 600).sqrt()
    assert float((loop.mean() - vmap.mean()).abs()) < 4 * float(error)
    assert len(vmap.unique()) > 590 and 0.5 < float(loop.std() / vmap.std()) < 2


@pytest.mark.parametrize("wanted", ["vmap", "auto", "loop"])
def test_dropout_repeats_itself_under_the_same_seed(wanted):
    learner, episodes = with_dropout(), random_episodes()
    theta = learner.init()
    which = choose(learner, theta, episodes, wanted).engine
    slopes = []
    for _ in range(2):
        torch.manual_seed(3)
        slopes.append(meta_gradient(learner, theta, episodes, which)[1])
    assert all(torch.equal(slopes[0][name], slopes[1][name]) for name in theta)


def test_dropout_does_not_run_on_threads():
    """Which thread draws first is not repeatable."""
    learner, episodes = with_dropout(), random_episodes()
    with pytest.warns(EngineWarning, match="threads cannot repeat random draws"):
        choice = choose(learner, learner.init(), episodes, "threads")
    assert choice.engine != "threads"
    assert choose(learner, learner.init(), episodes, "auto").engine in ("vmap", "loop")


@pytest.mark.parametrize(
    "build",
    [lambda: transformer(dropout=0.1), lambda: Net(nn.MultiheadAttention(4, 2, dropout=0.2, batch_first=True), attend)],
    ids=["transformer", "attention"],
)
def test_dropout_inside_attention_does_not_count_as_a_wrong_derivative(build):
    learner, episodes = qs.MAML(build(), lr=0.3), episodes_for_sequences()
    choice, seen = chosen_in_peace(learner, learner.init(), episodes, "vmap")
    assert choice == race.Choice("vmap", "as asked") and seen == []


@dataclass(frozen=True, eq=False)
class Noisy(Learner):
    """Draws a latent code in its loss, as LEO and latent neural processes do."""

    def init(self) -> Theta:
        return {"w": torch.ones(4)}

    def adapt(self, theta: Theta, support: Batch) -> Tensor:
        return theta["w"]

    def predict(self, theta: Theta, phi: Tensor, x: Tensor) -> Tensor:
        return x @ phi[:, None]

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        code = theta["w"] * (1 + torch.randn(4))
        return (self.predict(theta, code, episode.query.x) ** 2).mean()


def test_a_learner_that_draws_does_not_count_as_a_wrong_derivative():
    choice, seen = chosen_in_peace(Noisy(), Noisy().init(), random_episodes(), "vmap")
    assert choice == race.Choice("vmap", "as asked") and seen == []


# --- choosing --------------------------------------------------------------------------------------------------------


def choose_among(attempt: Callable[[str], Any], name: str, tasks: int = 4) -> race.Choice:
    return race.chosen(race.Race(lambda one: race.Entrant(lambda: attempt(one.name)), tasks, CPU), name)


def test_the_loop_is_chosen_without_a_trial():
    def never(which: str) -> None:
        raise AssertionError("tried")

    assert choose_among(never, "loop") == race.Choice("loop", "as asked")
    assert choose_among(never, "vmap", tasks=1) == race.Choice("loop", "one task only")


def test_auto_takes_the_fastest(monkeypatch):
    """By a clock that runs as each engine says."""
    now, seconds = [0.0], {"loop": 3.0, "threads": 2.0, "vmap": 1.0}
    monkeypatch.setattr(race.time, "perf_counter", lambda: now[0])

    def attempt(which: str) -> Tensor:
        now[0] += seconds[which]
        return torch.ones(2)

    assert choose_among(attempt, "auto").engine == "vmap"
    seconds["vmap"] = 4.0
    with cores(2):
        choice = choose_among(attempt, "auto")
    assert choice.engine == "threads"
    assert all(f"{name} {1e3 * value:.1f} ms" in choice.reason for name, value in seconds.items())


def test_a_race_waits_for_its_own_device_before_and_after_each_run(monkeypatch):
    """Work that was given to the device before must not count, nor may work go on after the clock has stopped."""
    events: list[Any] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", events.append)
    gpu = torch.device("cuda", 1)

    def attempt() -> Tensor:
        events.append("work")
        return torch.ones(2)

    race.chosen(race.Race(lambda one: race.Entrant(attempt), 4, gpu), "auto")
    assert len(events) > 6 and events == [gpu, "work", gpu] * (len(events) // 3)


def test_auto_does_not_take_an_engine_that_gives_another_result():
    def attempt(which: str) -> Tensor:
        return torch.full((3,), 2.0 if which == "vmap" else 1.0)

    choice = choose_among(attempt, "auto")
    assert choice.engine != "vmap" and "vmap cannot: it gives another result than the loop" in choice.reason


def test_what_fails_in_the_loop_too_is_the_callers_own_error():
    def attempt(which: str) -> Tensor:
        raise ValueError(f"broken in {which}")

    for name in ("auto", "vmap", "threads"):
        with pytest.raises(ValueError, match="broken in loop"):
            choose_among(attempt, name)


def test_a_defect_of_the_learner_is_not_taken_for_a_limit_of_vmap():
    """An exception that torch's transforms never raise passes through."""

    def attempt(which: str) -> Tensor:
        raise KeyError("weight")

    with pytest.raises(KeyError):
        choose_among(attempt, "vmap")


def test_an_unknown_engine_is_refused_with_the_nearest_name():
    for use in (
        lambda: choose_among(lambda which: None, "vmpa"),
        lambda: qs.map_tasks(torch.sum, random_episodes(), "vmpa"),
    ):
        with pytest.raises(ConfigError, match=r"'vmpa'\. Did you mean 'vmap'"):
            use()


def test_one_core_is_not_offered_threads():
    learner, episodes = learner_for("plain"), episodes_for_sequences()
    assert torch.get_num_threads() == 1
    assert "threads" not in choose(learner, learner.init(), episodes, "auto").reason


# --- mapping ---------------------------------------------------------------------------------------------------------


def plain_learner() -> qs.MAML:
    return qs.MAML(qs.nn.mlp(4, 3, hidden=(5,), activation="tanh"), lr=0.3, steps=2)


@pytest.mark.parametrize("name", ["loop", "threads", "vmap"])
def test_the_meta_gradient_is_the_mean_over_tasks(name):
    learner, episodes = plain_learner(), random_episodes(5)
    theta = learner.init()
    loss, slope = meta_gradient(learner, theta, episodes, name)
    leaves = {n: v.clone().requires_grad_() for n, v in theta.items()}
    mean = torch.stack([learner.meta_loss(leaves, one) for one in mapping.unstack(episodes)]).mean()
    mean.backward()
    assert_close(loss, mean, 1e-12)
    assert_close(slope, {n: v.grad for n, v in leaves.items()}, 1e-11)
    assert not loss.requires_grad and not any(v.requires_grad for v in slope.values())


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_are_bit_identical_to_the_loop_whatever_their_number(threads):
    learner, episodes = plain_learner(), random_episodes(7)
    theta = learner.init()
    with cores(threads):
        on_threads = qs.meta_gradient(learner, theta, episodes, "threads")
        assert torch.get_num_threads() == threads
    loop = qs.meta_gradient(learner, theta, episodes, "loop")
    assert torch.equal(on_threads[0], loop[0])
    assert all(torch.equal(on_threads[1][n], loop[1][n]) for n in theta)


@pytest.mark.parametrize("name", ["loop", "threads", "vmap"])
def test_any_grad_mode_of_the_caller_gives_the_same_meta_gradient(name):
    learner, episodes = plain_learner(), random_episodes(3)
    theta = learner.init()
    wanted = meta_gradient(learner, theta, episodes, name)[1]
    with torch.no_grad():
        found = meta_gradient(learner, theta, episodes, name)[1]
        assert not torch.is_grad_enabled()
    assert all(torch.equal(found[n], wanted[n]) for n in theta)


@pytest.mark.parametrize("name", ["loop", "threads", "vmap"])
def test_mapping_stacks_trees_in_the_order_of_the_tasks(name):
    episodes = random_episodes(4)

    def function(episode: Episode) -> dict[str, Any]:
        return {"sum": episode.query.x.sum(), "pair": (episode.query.y, episode.support.x * 2)}

    found = map_tasks(function, episodes, name)
    assert_close(found["sum"], episodes.query.x.sum((1, 2)), 1e-14)
    assert torch.equal(found["pair"][0], episodes.query.y)
    assert torch.equal(found["pair"][1], 2 * episodes.support.x)


@pytest.mark.parametrize("name", ["loop", "threads", "vmap"])
def test_what_does_not_depend_on_the_task_is_a_whole_tensor_too(name):
    """vmap gives such a value back expanded with stride 0: writing to one row would write to all."""
    found = map_tasks(lambda episode: torch.zeros(2), random_episodes(3), name)
    assert found.shape == (3, 2)
    found[0] += 1
    assert not found[1].any()


@pytest.mark.parametrize("name", ["loop", "threads", "vmap"])
def test_mapping_records_no_gradient(name):
    learner, episodes = plain_learner(), random_episodes(3)
    theta = {n: v.requires_grad_() for n, v in learner.init().items()}
    assert not map_tasks(lambda episode: learner.meta_loss(theta, episode), episodes, name).requires_grad


def test_an_error_on_a_thread_reaches_the_caller_and_restores_the_setting():
    def fails(episode: Episode) -> Tensor:
        raise ArithmeticError("task")

    with cores(2):
        with pytest.raises(ArithmeticError, match="task"):
            qs.map_tasks(fails, random_episodes(4), "threads")
        assert torch.get_num_threads() == 2


def test_unstacking_gives_views():
    episodes = random_episodes(3)
    ones = mapping.unstack(episodes)
    assert len(ones) == 3 and all(isinstance(one, Episode) for one in ones)
    assert ones[1].support.x.data_ptr() == episodes.support.x[1].data_ptr()
    assert torch.equal(torch.stack([one.query.y for one in ones]), episodes.query.y)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_threads_work_in_a_forked_child():
    """A child has none of its parent's threads: waiting for them would hang for ever."""
    episodes = random_episodes(2)
    qs.map_tasks(lambda episode: episode.query.x.sum(), episodes, "threads")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of forking a process with threads: that is the point here
        child = os.fork()
    if child == 0:
        try:
            total = qs.map_tasks(lambda episode: episode.query.x.sum(), episodes, "threads")
            os._exit(0 if torch.isfinite(total).all() else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- the check of vmap -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRONG_UNDER_VMAP)
def test_a_wrong_second_derivative_under_vmap_is_found(name):
    """Torch's fused normalisations with scale and shift are: by 3 to 1700 percent of the largest entry, in silence."""
    learner, episodes = ByTransform(learner_for(name).model), episodes_for_sequences()
    theta = learner.init()
    loop, vmap = (meta_gradient(learner, theta, episodes, which)[1] for which in ("loop", "vmap"))
    apart = max(float((loop[n] - vmap[n]).abs().max() / loop[n].abs().max()) for n in theta)
    if apart < 1e-9:
        pytest.skip("this torch gets it right")
    with pytest.raises(RuntimeError, match=r"the meta-gradient of .* is wrong"):
        agreement.check_engine(learner, theta, episodes, "vmap")
    choice, seen = chosen_in_peace(learner, theta, episodes, "vmap")
    assert choice.engine != "vmap" and seen == [EngineWarning]


def test_a_meta_gradient_that_is_not_finite_under_vmap_alone_is_found():
    class OnlyInTheLoop(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            output = super().forward(input)
            return output * torch.nan if inside_transform() else output

    learner = qs.MAML(OnlyInTheLoop(4, 3))
    with pytest.raises(RuntimeError, match="wrong \\(by nan"):
        agreement.check_engine(learner, learner.init(), random_episodes(), "vmap")


@pytest.mark.parametrize("name", ["plain", "batch norm", "transformer"])
def test_what_vmap_gets_right_passes_the_check_in_float32_too(name):
    learner = learner_for(name)
    single = in_single(learner, episodes_for_sequences())
    unchanged = snapshot(learner.model, single)
    agreement.check_engine(learner, learner.init(), single, "vmap")
    assert unchanged()


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 9])
def test_chunks_of_tasks_give_the_same_mean(chunk):
    learner = qs.MAML(qs.nn.mlp(4, 3, activation="tanh"), lr=0.2)
    theta, seen = learner.init(), []
    episodes = random_episodes(5)
    wanted = qs.meta_gradient(learner, theta, episodes, "loop")
    found = qs.meta_gradient(learner, theta, episodes, "vmap", chunk)
    assert agreement.relative_difference(found, wanted) < 1e-12
    for part in chunks(episodes, chunk):
        seen.append(part.query.x)
        assert len(part.query.x) <= chunk
    assert torch.equal(torch.cat(seen), episodes.query.x)
