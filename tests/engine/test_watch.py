"""An engine that is wrong for some values only is found, in training, in validation and in evaluation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import quickstudy as qs
from quickstudy.engine import agreement, mapping, watch
from quickstudy.engine.choice.choose import choose_engine
from quickstudy.engine.engines import BY_NAME
from quickstudy.errors import EngineError, EngineWarning, ModelWarning
from quickstudy.learner import Learner

WIDTH, WORDS, CLASSES = 8, 50, 3


class Words:
    """Tasks of 6 texts of 5 tokens, of which the last two are padding (number 0) in every `every`-th draw."""

    ways = CLASSES

    def __init__(self, every: int = 1, first: int = 0) -> None:
        self.every, self.first, self.drawn = every, first, 0

    def sample(self, n: int, generator: torch.Generator | None = None) -> qs.Episode:
        tokens = torch.randint(1, WORDS, (2, n, 6, 5), generator=generator)
        for task in range(n):
            if self.drawn >= self.first and self.drawn % self.every == 0:
                tokens[:, task, :, 3:] = 0
            self.drawn += 1
        return qs.Episode(*(qs.Batch(x, (torch.arange(6) % CLASSES).expand(n, 6)) for x in tokens))


class Net(nn.Module):
    """A mean of word vectors, whatever looks them up."""

    def __init__(self, table: nn.Module, read: Callable[[nn.Module, Tensor], Tensor], dropout: float = 0.0) -> None:
        super().__init__()
        self.table, self.read, self.dropout = table, read, dropout
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, t: Tensor) -> Tensor:
        h = torch.tanh(self.read(self.table, t))
        return self.head(F.dropout(h, self.dropout, self.training) if self.dropout else h)


class Tied(nn.Module):
    """Word vectors that also score: the rows of three words are the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, WIDTH, padding_idx=0)

    def forward(self, t: Tensor) -> Tensor:
        return self.table(t).mean(1) @ self.table.weight[1 : 1 + CLASSES].T


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, WIDTH, padding_idx=0)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, 0.1, batch_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, t: Tensor) -> Tensor:
        return self.head(self.layer(self.table(t), src_key_padding_mask=t == 0).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(WORDS, WIDTH, padding_idx=0), nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, t: Tensor) -> Tensor:
        return self.head(self.layer(self.table(t))[0][:, -1])


def padded(number: int = 0, **options: bool) -> nn.Embedding:
    return nn.Embedding(WORDS, WIDTH, padding_idx=number, **options)  # type: ignore[arg-type]


def looked_up(table: nn.Module, t: Tensor) -> Tensor:
    return table(t).mean(1)


def by_function(table: nn.Module, t: Tensor) -> Tensor:
    return F.embedding(t, table.weight, padding_idx=0).mean(1)  # type: ignore[arg-type]


def from_the_end(table: nn.Module, t: Tensor) -> Tensor:
    return table(torch.where(t == 0, WORDS - 1, t.clamp(max=WORDS - 2))).mean(1)


def maml(model: nn.Module, **options: object) -> Learner:
    return qs.MAML(model, lr=0.1, steps=2, **options)  # type: ignore[arg-type]


# What must leave the row of a padding number alone: how the learner is built, the name of its table, and the row.
PROGRAMS: dict[str, tuple[Callable[[], Learner], str, int]] = {
    "dropout by function": (lambda: maml(Net(padded(), looked_up, 0.1)), "table.weight", 0),
    "nothing drawn": (lambda: maml(Net(padded(), looked_up)), "table.weight", 0),
    "first order": (lambda: maml(Net(padded(), looked_up, 0.1), first_order=True), "table.weight", 0),
    "the last number": (lambda: maml(Net(padded(-1), from_the_end, 0.1)), "table.weight", WORDS - 1),
    "by frequency": (lambda: maml(Net(padded(scale_grad_by_freq=True), looked_up)), "table.weight", 0),
    "sparse": (lambda: maml(Net(padded(sparse=True), looked_up)), "table.weight", 0),
    "a function": (lambda: maml(Net(nn.Embedding(WORDS, WIDTH), by_function)), "table.weight", 0),
    "a function, and dropout": (lambda: maml(Net(nn.Embedding(WORDS, WIDTH), by_function, 0.1)), "table.weight", 0),
    "tied": (lambda: maml(Tied()), "table.weight", 0),
    "attention": (lambda: maml(Attending()), "table.weight", 0),
    "recurrent": (lambda: maml(Recurrent()), "table.weight", 0),
    "anil": (lambda: qs.ANIL(Net(padded(), looked_up), lr=0.1, steps=2), "table.weight", 0),
    "metasgd": (lambda: qs.MetaSGD(Net(padded(), looked_up), steps=2), "table.weight", 0),
    "protonet": (lambda: qs.ProtoNet(Net(padded(), looked_up, 0.1), ways=CLASSES), "table.weight", 0),
}


@pytest.mark.parametrize("engine", ["auto", *mapping.PLAIN, *mapping.PROGRAMS[:2]])
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.filterwarnings("ignore::quickstudy.errors.EngineWarning")
def test_the_row_for_padding_gets_no_gradient_on_any_engine(program: str, engine: str) -> None:
    build, name, row = PROGRAMS[program]
    torch.manual_seed(0)
    learner, episodes = build(), Words().sample(4, torch.Generator().manual_seed(1))
    theta = learner.init()
    name = next(known for known in theta if known.endswith(name))
    chosen = choose_engine(learner, theta, episodes, engine, seed=0).engine
    gradient = mapping.meta_gradient(learner, theta, episodes, chosen)[1][name]
    assert gradient[row].norm() == 0.0
    assert gradient.norm() > 0.0


def test_equal_draws_make_a_model_that_draws_comparable() -> None:
    """Without them the two would differ by the size of the gradient; with them a wrong rule shows."""
    learner = maml(Net(padded(), looked_up, 0.3))
    theta, episodes = learner.init(), Words().sample(4)
    agreement.check_engine(learner, theta, episodes, "vmap")
    wrong = maml(Net(nn.Embedding(WORDS, WIDTH), by_function, 0.3))
    with pytest.raises(RuntimeError, match=r"the meta-gradient of 'table.weight' is wrong \(by"):
        agreement.check_engine(wrong, wrong.init(), episodes, "vmap")


def test_padding_that_comes_late_in_one_task_of_ten_stops_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SHARE", 100.0)  # look always: what is looked for here does not depend on the clock
    learner, tasks = maml(Net(nn.Embedding(WORDS, WIDTH), by_function, 0.1)), Words(every=10, first=30)
    with pytest.raises(EngineError, match=r"engine 'vmap' .*the meta-gradient of 'table.weight' is wrong"):
        qs.train(learner, tasks, iterations=20, meta_batch=10, engine="vmap", progress=False)
    assert 30 < tasks.drawn <= 70  # it is found in the first batch that has padding; the next is drawn ahead


def test_a_look_takes_the_tasks_with_new_extremes_first() -> None:
    learner, looks = maml(Net(padded(), looked_up)), watch.Watch("vmap")
    theta, source = learner.init(), Words(every=10, first=9)
    seen = []
    looks.compute = lambda learner, theta, episodes, engine: seen.append(episodes) or {"nothing": torch.zeros(1)}
    looks.look(learner, theta, source.sample(9))
    looks.began -= 1e6  # so much time has passed that every look is allowed
    looks.look(learner, theta, source.sample(9))  # of which the first two draws, 9 and 10, hold padding at 10
    assert any(bool((one.support.x == 0).any()) for one in seen[2:])


def test_looking_takes_its_share_of_the_time() -> None:
    learner, looks = maml(Net(padded(), looked_up)), watch.Watch("vmap", cost=1.0)
    theta, episodes = learner.init(), Words().sample(3)
    looks.look(learner, theta, episodes)
    assert looks.looks == 0, "a look that costs a second waits for 50 seconds even where all tasks are new"
    looks.began -= 51
    looks.look(learner, theta, episodes)
    assert looks.looks == 1
    looks.look(learner, theta, episodes)
    assert looks.looks == 1 or looks.spent + looks.cost < 1.0


def test_an_engine_with_the_loops_own_operations_is_never_compared() -> None:
    learner, looks = maml(Net(padded(), looked_up)), watch.Watch("threads")
    looks.look(learner, learner.init(), Words().sample(3))
    assert looks.looks == 0


def test_evaluation_compares_an_engine_that_was_asked_for() -> None:
    learner = maml(Net(nn.Embedding(WORDS, WIDTH), by_function))
    trained = qs.Trained(learner, learner.init())
    with pytest.warns(EngineWarning, match="'vmap' is replaced by .* the predictions is wrong|are wrong"):
        score = qs.evaluate(trained, Words(), episodes=10, engine="vmap")
    assert torch.equal(score.values, qs.evaluate(trained, Words(), episodes=10, engine="loop").values)


def test_evaluation_answers_again_where_a_later_episode_shows_the_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SHARE", 100.0)
    learner = maml(Net(nn.Embedding(WORDS, WIDTH), by_function))
    trained = qs.Trained(learner, learner.init())
    with pytest.warns(EngineWarning, match="answered again by engine 'loop'"):
        score = qs.evaluate(trained, Late(), episodes=60, engine="vmap")
    assert torch.equal(score.values, qs.evaluate(trained, Late(), episodes=60, engine="loop").values)


class Late(Words):
    """Padding in every fifth task from the 31st on, by the task's own generator so that all draws agree."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[int, int] = {}

    def sample(self, n: int, generator: torch.Generator | None = None) -> qs.Episode:
        assert generator is not None
        place = self.counts.setdefault(generator.initial_seed(), len(self.counts))
        self.drawn, self.first, self.every = place, 30, 5
        return super().sample(n, generator)


def test_validation_goes_on_with_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The training's own engine may be right where the one of its validations is not."""
    learner = maml(Net(nn.Embedding(WORDS, WIDTH), by_function))
    monkeypatch.setattr(agreement, "answers", agreement.answers)
    trained = qs.train(
        learner, Unpadded(), val=Words(), iterations=4, meta_batch=2, val_every=2, val_episodes=6, engine="vmap",
        progress=False,
    )  # fmt: skip
    assert trained.theta["table.weight"].isfinite().all()


class Unpadded(Words):
    def __init__(self) -> None:
        super().__init__(first=10**9)


# --- buffers ---------------------------------------------------------------------------------------------------------


class RunningMean(nn.Module):
    """Subtracts a running mean: written in place, or assigned."""

    mean: Tensor

    def __init__(self, assigned: bool) -> None:
        super().__init__()
        self.assigned = assigned
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        new = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        if self.assigned:
            self.mean = new
        else:
            self.mean.copy_(new)
        return x - self.mean


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (lambda: RunningMean(False), "0.mean"),
        (lambda: RunningMean(True), "0.mean"),
        (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), "0.parametrizations.weight.0._u"),
    ],
)
def test_a_buffer_that_the_model_writes_to_is_named(layer: Callable[[], nn.Module], name: str) -> None:
    learner = qs.MAML(nn.Sequential(layer(), nn.Linear(4, 1)), loss=F.mse_loss, lr=0.1)
    with pytest.warns(ModelWarning, match=f"writes to its buffers.*{name}"):
        qs.train(learner, Numbers(), iterations=1, meta_batch=2, engine="loop", progress=False)


def test_a_layer_that_writes_nothing_is_not_named(recwarn: pytest.WarningsRecorder) -> None:
    learner = qs.MAML(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), loss=F.mse_loss, lr=0.1)
    qs.train(learner, Numbers(), iterations=1, meta_batch=2, engine="loop", progress=False)
    assert not recwarn.list


class Numbers:
    def sample(self, n: int, generator: torch.Generator | None = None) -> qs.Episode:
        x = torch.randn(2, n, 5, 4, generator=generator)
        return qs.Episode(*(qs.Batch(one, one[..., :1]) for one in x))


def test_engines_that_are_never_wrong_here_are_known() -> None:
    assert {name for name, one in BY_NAME.items() if one.own_operations} == {"loop", "threads"}


# --- the check by finite differences ---------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [looked_up, by_function])
def test_the_check_by_differences_does_not_call_padding_an_error(read: Callable[[nn.Module, Tensor], Tensor]) -> None:
    """The loss depends on the row for padding, and its gradient is zero by definition."""
    table = padded() if read is looked_up else nn.Embedding(WORDS, WIDTH)
    episodes = Words().sample(1, torch.Generator().manual_seed(0))
    found = qs.check_meta_gradient(maml(Net(table, read)), mapping.unstack(episodes)[0])
    assert found.ok, str(found)
    assert {one.name: one.verdict for one in found.entries}["table.weight"] == "right"


def test_the_check_by_differences_still_finds_a_row_that_is_cut_off() -> None:
    def cut(table: nn.Module, t: Tensor) -> Tensor:
        return torch.where((t == 7)[..., None], table(t).detach(), table(t)).mean(1)

    episode = mapping.unstack(Words().sample(1, torch.Generator().manual_seed(0)))[0]
    episode.query.x[:, 0] = 7
    assert not qs.check_meta_gradient(maml(Net(padded(), cut)), episode).ok


def test_a_look_for_which_memory_does_not_suffice_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*args: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    learner, looks = maml(Net(padded(), looked_up)), watch.Watch("vmap")
    looks.compute = no_room  # type: ignore[assignment]
    looks.look(learner, learner.init(), Words().sample(3))
    assert looks.looks == 1 and not looks.failed
