"""Programs of meta-gradients: the same numbers in fewer operations, taken where that pays, refused where it fails."""

from __future__ import annotations

import gc
import pickle
import time
import weakref
from collections import Counter
from dataclasses import dataclass, field

import pytest
import torch
from problems import cores, meta_gradient, random_episodes, smooth_conv
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import quickstudy as qs
from quickstudy.engine import agreement, mapping
from quickstudy.engine.choice import choose, race
from quickstudy.engine.programs import program
from quickstudy.errors import EngineWarning
from quickstudy.learner import Batch, Episode

pytestmark = pytest.mark.usefixtures("double")
CPU = torch.device("cpu")


def small(**fields) -> qs.MAML:
    return qs.MAML(qs.nn.mlp(4, 3, hidden=(5,), activation="tanh"), **{"lr": 0.3, "steps": 2} | fields)


def chosen(learner: qs.MAML, episodes: Episode, name: str) -> race.Choice:
    return choose.choose_engine(learner, learner.init(), episodes, name, seed=0)


class Recurrent(nn.Module):
    """torch's own layer, for which it has no rule under vmap."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0].mean(1))


class Deciding(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * (2.0 if bool(self.weight.sum() > 0) else 1.0)


# --- the same numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["replay", "replay-threads"])
@pytest.mark.parametrize("build", [lambda: smooth_conv("batch"), Recurrent], ids=["convolutions", "lstm"])
def test_programs_are_taken_as_asked_also_where_vmap_cannot(build, name, recwarn):
    learner = qs.MAML(build(), lr=0.1, steps=2)
    episodes = random_episodes(4, (1, 6, 6) if isinstance(learner.model, nn.Sequential) else (5, 4))
    with cores(2):
        assert chosen(learner, episodes, name)[:3] == race.Choice(name, "as asked")[:3]
        both = [qs.meta_gradient(learner, learner.init(), episodes, which) for which in (name, "loop")]
    assert agreement.relative_difference(*both) < 1e-10 and not recwarn.list


@pytest.mark.parametrize("chunk", [1, 2, 3, 5])
def test_chunks_of_tasks_give_the_same_mean(chunk):
    learner, episodes = small(), random_episodes(5)
    found, wanted = (
        qs.meta_gradient(learner, learner.init(), episodes, *way) for way in (("replay", chunk), ("loop",))
    )
    assert agreement.relative_difference(found, wanted) < 1e-12


def test_a_replay_of_all_tasks_starts_fewer_operations_than_the_loop_for_one():
    """Counted, as time cannot be."""
    learner, episodes = small(steps=5), random_episodes(8)
    counts = {}
    for name in ("loop", "replay"):
        meta_gradient(learner, learner.init(), episodes, name)
        with Count() as count:
            meta_gradient(learner, learner.init(), episodes, name)
        counts[name] = count.of.total()
    assert counts["replay"] < counts["loop"] / 8


def test_a_program_computes_again_what_the_adjoint_lets_go_of():
    """Else it would hold every step, as unroll does."""
    counts = {}
    for adjoint in ("unroll", "remat"):
        learner, episodes = small(steps=5, adjoint=adjoint), random_episodes(4)
        meta_gradient(learner, learner.init(), episodes, "replay")
        with Count() as count:
            meta_gradient(learner, learner.init(), episodes, "replay")
        counts[adjoint] = count.of["tanh"]
    assert counts == {"unroll": 5 + 1, "remat": 2 * 5 + 1}


class Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.of[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_a_program_is_recorded_once_for_each_shape_and_precision(monkeypatch):
    made, own = [], program._made
    monkeypatch.setattr(program, "_made", lambda *given: (made.append(given[-1].name), own(*given))[1])
    learner = small()
    for tasks in (3, 3, 4):
        meta_gradient(learner, learner.init(), random_episodes(tasks, seed=tasks), "replay")
    assert made == ["replay", "replay"]
    qs.meta_gradient(learner, learner.init(), random_episodes(3), "replay", precision="bf16")
    meta_gradient(small(), learner.init(), random_episodes(3), "replay")
    assert made == 4 * ["replay"]


def test_programs_go_with_their_learner():
    """Even one of whose fields knows the learner."""
    known = {}
    learner = known["learner"] = small(loss=lambda outputs, y, known=known: qs.cross_entropy(outputs, y))
    del known
    meta_gradient(learner, learner.init(), random_episodes(), "replay")
    gone = weakref.ref(learner)
    del learner
    gc.collect()
    assert gone() is None


def test_bfloat16_is_recorded_as_it_is_computed():
    learner = qs.ProtoNet(qs.nn.mlp(4, 3, hidden=(5,)).float(), ways=3)
    episodes = Episode(*(Batch(x.float(), y) for x, y in random_episodes()))
    exact = qs.meta_gradient(learner, learner.init(), episodes, "loop")
    for precision, used in (("bf16", True), ("float32", False)):
        qs.meta_gradient(learner, learner.init(), episodes, "replay", None, precision)
        with Types() as seen:
            found = qs.meta_gradient(learner, learner.init(), episodes, "replay", None, precision)
        assert (torch.bfloat16 in seen.types) == used
        assert all(value.dtype == torch.float32 for value in found[1].values())
        assert agreement.relative_difference(found, exact) < (1e-2 if used else 1e-6)


class Types(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        self.types |= {found.dtype} if isinstance(found, Tensor) else set()
        return found


def test_a_frozen_part_may_change_between_replays():
    learner = small()
    learner.model.layer1.weight.requires_grad_(False)
    theta, episodes = learner.init(), random_episodes()
    meta_gradient(learner, theta, episodes, "replay")
    with torch.no_grad():
        learner.model.layer1.weight.mul_(-2.0)
    both = [meta_gradient(learner, theta, episodes, name) for name in ("replay", "loop")]
    assert agreement.relative_difference(*both) < 1e-12


def switched_off(learner: qs.MAML) -> None:
    learner.model.train(not learner.model.training)


def replaced_layer(learner: qs.MAML) -> None:
    learner.model[1] = nn.Sigmoid()


def replaced_buffer(learner: qs.MAML) -> None:
    learner.model[0].running_mean = torch.full((4,), 0.5)


def changed_buffer(learner: qs.MAML) -> None:
    learner.model[0].running_mean.add_(0.5)


def replaced_weight(learner: qs.MAML) -> None:
    learner.model[2].weight = nn.Parameter(learner.model[2].weight * 2, requires_grad=False)


def exchanged_weight(learner: qs.MAML) -> None:
    learner.model[2].weight.data = learner.model[2].weight * 2


def changed_weights_of_classes(learner: qs.MAML) -> None:
    learner.loss.weight = torch.tensor([1.0, 2.0, 3.0])


def thawed(learner: qs.MAML) -> None:
    learner.model[2].weight.requires_grad_(True)


CHANGES = [
    switched_off,
    replaced_layer,
    replaced_buffer,
    changed_buffer,
    replaced_weight,
    exchanged_weight,
    changed_weights_of_classes,
    thawed,
]


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_in_a_learner_is_recorded_anew(change, mode):
    norm, layers = nn.BatchNorm1d(4), (nn.Tanh(), nn.Linear(4, 3))
    learner = qs.MAML(nn.Sequential(norm, *layers).train(mode), lr=0.3, loss=nn.CrossEntropyLoss(torch.ones(3)))
    learner.model[2].weight.requires_grad_(False)
    theta, episodes = learner.init(), random_episodes()
    meta_gradient(learner, theta, episodes, "replay")
    change(learner)
    both = [meta_gradient(learner, theta, episodes, name) for name in ("replay", "loop")]
    assert agreement.relative_difference(*both) < 1e-12


def test_equal_learners_with_another_field_have_programs_of_their_own():
    @dataclass(frozen=True)
    class Scaled:
        scale: float = field(compare=False)

        def init(self) -> dict[str, Tensor]:
            return {"w": torch.ones(4)}

        def adapt(self, theta, support):
            return theta

        def predict(self, phi, x):
            return self.scale * (x @ phi["w"])

        def meta_loss(self, theta, episode):
            return self.predict(theta, episode.query.x).square().mean()

    episodes = random_episodes()
    for scale in (1.0, 2.0):
        learner = Scaled(scale)
        both = [meta_gradient(learner, learner.init(), episodes, name) for name in ("replay", "loop")]
        assert agreement.relative_difference(*both) < 1e-12


def test_gradients_that_are_equal_may_be_changed_one_by_one():
    """As clipping does; two of them are one operation of the program."""

    class Offset(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 3)
            self.offset = nn.Parameter(torch.zeros(3))

        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + self.offset

    learner = qs.MAML(Offset(), lr=0.1, adjoint="first_order")
    found = qs.meta_gradient(learner, learner.init(), random_episodes(), "replay")
    places = [tensor.untyped_storage().data_ptr() for tensor in (found[0], *found[1].values())]
    assert len(set(places)) == len(places) and torch.equal(found[1]["bias"], found[1]["offset"])


def test_training_by_replay_is_training_by_the_loop_and_resumes(tmp_path):
    def trained(name: str, out: str, *iterations: int) -> dict[str, Tensor]:
        torch.manual_seed(3)
        learner, tasks = qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss, lr=0.01), qs.tasks.sinusoid("train")
        common = {"meta_batch": 4, "engine": name, "out": tmp_path / out, "progress": False}
        for until in iterations:
            found = qs.train(learner, tasks, iterations=until, resume=until != iterations[0], **common)
        return found.theta

    replay, loop = trained("replay", "replay", 30), trained("loop", "loop", 30)
    assert agreement.relative_difference(replay, loop) < 1e-9
    assert all(torch.equal(value, replay[name]) for name, value in trained("replay", "cut", 12, 30).items())


# --- what cannot -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (lambda: qs.MAML(nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3))), "it draws at random"),
        (lambda: qs.ProtoNet(Deciding(4, 3), ways=3), "it decides on a tensor's values"),
        (lambda: qs.MAMLPlusPlus(nn.Linear(4, 3), anneal=0.5), "the learner changes in the course of training"),
    ],
)
@pytest.mark.parametrize("name", ["replay", "replay-threads", "compile"])
def test_what_cannot_be_recorded_runs_otherwise_and_says_why(build, why, name):
    learner, episodes = build(), random_episodes()
    with pytest.warns(EngineWarning, match=f"engine '{name}' is replaced by '(vmap|loop)': {name} cannot: {why}"):
        choice = chosen(learner, episodes, name)
    assert choice.engine in ("vmap", "loop")


@pytest.mark.parametrize("name", ["replay", "replay-threads", "compile"])
def test_tasks_of_several_sizes_have_no_program(name):
    few, more = (mapping.unstack(random_episodes(1, shots=shots))[0] for shots in (1, 2))
    with pytest.raises(RuntimeError, match="tasks of one size"):
        meta_gradient(qs.ProtoNet(qs.nn.mlp(4), ways=3), {}, [few, more], name)


def test_a_program_that_holds_for_one_task_alone_is_found():
    """A number that Python got hold of is that of the task it was recorded on."""

    class Sly(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * pickle.loads(pickle.dumps(input.detach()))[0, 0]

    learner = qs.ProtoNet(Sly(4, 3), ways=3)
    with pytest.raises(RuntimeError, match=r"the meta-gradient of .* is wrong"):
        agreement.check_engine(learner, learner.init(), random_episodes(), "replay")


def test_a_program_that_holds_for_one_theta_alone_is_found():
    class Sly(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * pickle.loads(pickle.dumps(self.weight.detach()))[0, 0]

    learner = qs.ProtoNet(Sly(4, 3), ways=3)
    with pytest.raises(RuntimeError, match=r"the meta-gradient of .* is wrong"):
        agreement.check_engine(learner, learner.init(), random_episodes(), "replay")
    found = qs.check_meta_gradient(learner, mapping.unstack(random_episodes())[0]).engines
    assert {one.name: one.works for one in found}["replay"] is False


# --- compiled --------------------------------------------------------------------------------------------------------


def test_a_compiled_meta_gradient_is_that_of_the_loop():
    learner = qs.MAML(nn.Linear(4, 3), lr=0.2)  # small: compiling is what takes long
    theta = learner.init()
    for seed in (0, 1):  # the second with other numbers in the same program
        episodes = random_episodes(seed=seed)
        both = [meta_gradient(learner, theta, episodes, name) for name in ("compile", "loop")]
        assert agreement.relative_difference(*both) < 1e-12
        theta = {name: value + 0.1 for name, value in theta.items()}
    choice = chosen(learner, episodes, "compile")
    assert choice.engine == "compile" and choice.reason.startswith("as asked, compiled in")


# --- where they pay --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loop", "best", "iterations", "worth"),
    [
        (0.05, 0.006, 60_000, True),
        (0.05, 0.006, 100, False),  # recording takes as long as the whole training
        (0.4, 0.4, 1_000, True),
        (0.4, 0.4, 100, False),
    ],
)
def test_auto_records_where_it_can_pay(loop, best, iterations, worth):
    assert race._worth_recording({"loop": loop, "vmap": best}, iterations) == worth


@pytest.mark.parametrize(
    ("seconds", "recording", "iterations", "worth"),
    [
        ({"loop": 0.05, "replay": 0.002}, 0.1, 60_000, True),
        ({"loop": 0.05, "replay": 0.002}, 0.1, 10_000, False),  # over before a compiler pays
        ({"loop": 0.05, "replay": 0.002}, 4.0, 60_000, False),  # long to compile
        ({"loop": 0.4, "replay": 0.05}, 0.5, 60_000, True),
        ({"loop": 0.4, "replay": 0.2}, 0.5, 60_000, False),  # arithmetic, not starts
        ({"loop": 0.02, "replay": 0.03}, 0.1, 60_000, False),
        ({"loop": 0.02}, 0.1, 60_000, False),
    ],
)
def test_auto_compiles_where_it_can_pay(seconds, recording, iterations, worth):
    assert race._worth_compiling({"replay": recording}, seconds, iterations) == worth


def test_auto_takes_a_program_only_if_it_is_faster_and_right():
    def tried(value: float, pause: float) -> race.Choice:
        def attempt(name: str) -> Tensor:
            time.sleep({"loop": 0.006, "vmap": 0.004, "replay": pause, "replay-threads": 0.005}[name])
            return torch.tensor([value if name == "replay" else 1.0])

        contest = race.Race(lambda one: race.Entrant(lambda: attempt(one.name)), 4, CPU, iterations=1_000)
        return race.chosen(contest, "auto")

    assert tried(1.0, 0.001).engine == "replay"
    assert tried(1.0, 0.02).engine == "vmap"
    wrong = tried(2.0, 0.001)
    assert wrong.engine == "vmap" and "replay cannot: it gives another result" in wrong.reason


def test_auto_tries_programs_in_a_long_training_only():
    learner, episodes = small(), random_episodes(8)
    for iterations, tried in ((50_000, True), (5, False)):
        choice = choose.choose_engine(learner, learner.init(), episodes, "auto", seed=0, iterations=iterations)
        assert ("replay " in choice.reason) == tried and "vmap " in choice.reason


# --- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["replay", "compile"])
def test_a_program_is_one_graph_on_a_gpu_and_reads_its_inputs_anew(name):
    torch.set_default_dtype(torch.float32)
    device = torch.device("cuda")
    learner = qs.MAML(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).to(device), lr=0.1, steps=2)
    for seed in range(3):  # other weights and other tasks each time
        theta = {key: value + 0.1 * seed for key, value in learner.init().items()}
        episodes = Episode(*(Batch(x.float().to(device), y.to(device)) for x, y in random_episodes(4, seed=seed)))
        exact = qs.meta_gradient(learner, theta, episodes, "vmap")
        assert agreement.relative_difference(qs.meta_gradient(learner, theta, episodes, name), exact) < 1e-4
