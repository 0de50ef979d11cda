"""A recorded program gives what the function gives, for other inputs too, in fewer operations; or it says why not."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import assert_close
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from quickstudy.engine.programs.recording import Program, _Recorder, over_tasks, record

pytestmark = pytest.mark.usefixtures("double")
aten = torch.ops.aten


class _Log(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.called.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def operations(program: Program, *inputs: Tensor) -> list[str]:
    with torch.no_grad(), _Log() as log:
        program(*inputs)
    return log.called


def numbers(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def agrees(function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> Program:
    """The program of a function, which gives the same for inputs it was not recorded on."""
    program = record(lambda *inputs: [function(*inputs)], numbers(*shapes))
    for seed in (1, 2):
        inputs = numbers(*shapes, seed=seed)
        before = [tensor.clone() for tensor in inputs]
        assert_close(program(*inputs)[0], function(*inputs), 1e-12)
        assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
    return program


def all_close(found: list[Tensor], wanted: list[Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other, 1e-12)


# --- what is left out ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "left"),
    [
        (lambda x, y: x.detach().clone() * 1 + 0, []),
        (lambda x, y: x.view(12).view(4, 3).unsqueeze(0).squeeze(0).reshape(3, 4), []),
        (lambda x, y: x.t().transpose(0, 1).permute(0, 1), []),
        (lambda x, y: x.expand(3, 4).to(torch.float64), []),
        (lambda x, y: x * torch.ones(3, 4) + torch.zeros(3, 4) - torch.zeros(()), []),
        (lambda x, y: x / 1.0, []),
        (lambda x, y: x[None].permute(2, 0, 1).permute(2, 0, 1), ["permute"]),
        (lambda x, y: x[None].permute(2, 0, 1).transpose(0, 1), ["transpose"]),
        (lambda x, y: torch.tanh(x) + torch.tanh(x), ["tanh", "add"]),  # the same twice is done once
        (lambda x, y: x + 3.0 * y, ["add"]),
        (lambda x, y: 3.0 * x + y, ["add"]),
        (lambda x, y: x - y * 3.0, ["sub"]),
        (lambda x, y: x + y.t().t() @ torch.eye(4), ["addmm"]),
        (lambda x, y: x + x * y, ["addcmul"]),
        (lambda x, y: x * y + x, ["addcmul"]),
        (lambda x, y: torch.sub(x, x * y, alpha=0.5), ["addcmul"]),
        (lambda x, y: x * y - x, ["mul", "sub"]),
        (lambda x, y: x.sum(1, True) @ y.sum(0, True), ["sum", "sum", "mul"]),  # a column times a row
        (lambda x, y: (x.T @ y).exp().sum() + x, ["transpose", "mm", "exp", "sum", "add"]),
        (lambda x, y: x + torch.ones(5, 5).cumsum(0)[0, 0] * torch.zeros_like(y), []),  # of no input's value
    ],
)
def test_what_does_no_work_is_left_out(function, left):
    program = agrees(function, (3, 4), (3, 4))
    found = operations(program, *numbers((3, 4), (3, 4)))
    assert [name for name in found if name not in ("view", "clone")] == left


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: x + torch.zeros(5, 3, 4),  # of another shape
        lambda x, y: torch.ones(2, 1, 1) * x,
        lambda x, y: (x > 0) * 1,  # of another type
        lambda x, y: (x > 0) / 1,
        lambda x, y: 1 / x.exp(),
        lambda x, y: 0 - x,
        lambda x, y: torch.zeros(3, 4) - x,
        lambda x, y: torch.add(torch.zeros(3, 4), x, alpha=2),
        lambda x, y: torch.add(x, 3.0 * y, alpha=-0.5),
        lambda x, y: torch.sub(3.0 * x, 2.0 * y, alpha=2),
        lambda x, y: (z := 2.0 * x) + z,
        lambda x, y: (z := x @ y.T) + z,
        lambda x, y: torch.add(x @ y.T, x @ y.T, alpha=3),
        lambda x, y: x.T @ y + torch.stack(5 * [x.T @ x]),  # the product is smaller than the sum
        lambda x, y: x[:, :2] @ y[:2],
        lambda x, y: F.pad(x, (0, 1), value=float("-inf")).amax(0),
        lambda x, y: x + 0.3 * y.float(),
        lambda x, y: x + y.float() * y.float(),
        lambda x, y: torch.stack(5 * [x]) + x * y.sum(0),
        lambda x, y: torch.add(x.sum(1, True), x * y, alpha=-2) + x * (y * x),
        lambda x, y: x[:, None, :1] @ y[:, :1, None] + x[:, None],
        lambda x, y: ((m := (x > 0).long()) + 1) + (m + 1.0) ** -1,  # whole numbers have no such power
        lambda x, y: (x > 0).to(torch.float64) + (y @ y.T).sum(),
        lambda x, y: 3 * (x > 0).long() + (y > 0).long(),
        lambda x, y: x.float().double(),  # which loses digits
        lambda x, y: x.squeeze().unsqueeze(-1).expand(3, 4, 2).permute(2, 1, 0).reshape(-1),
        lambda x, y: x.expand(2, 3, 4).transpose(0, 2).contiguous().view(-1, 2).t(),
        lambda x, y: torch.stack([x, y]).unbind()[1] + x.split(2)[0].sum(),
        lambda x, y: x.max(dim=1).values + y.max(dim=1).indices,
        lambda x, y: x[torch.tensor([2, 0])] * y[:2],
        lambda x, y: x[:, y[0].long().abs() % 4],
        lambda x, y: torch.linalg.solve(x @ x.T + torch.eye(3), y),
        lambda x, y: torch.where(x > 0, x, y).cumsum(0),
        lambda x, y: F.scaled_dot_product_attention(x[None], y[None], y[None]),
    ],
)
def test_what_works_stays(function):
    agrees(function, (3, 4), (3, 4))


STEPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "view": lambda a, b: a.reshape(2, 8).view(16).view(4, 4),
    "transpose": lambda a, b: a.transpose(0, 1),
    "permute": lambda a, b: a[None].permute(2, 1, 0)[..., 0],
    "expand": lambda a, b: a[:1].expand(4, 4),
    "scale": lambda a, b: a * 0.5,
    "sum": lambda a, b: a.sum(0, keepdim=True) * 0.1 + b,
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: torch.sub(a, b, alpha=0.3),
    "multiply": lambda a, b: a * b.tanh(),
    "negate": lambda a, b: -a * 1,
    "product": lambda a, b: a.tanh() @ b.tanh() + a,
    "nothing": lambda a, b: (a.detach() + torch.zeros(4, 4)).clone() / 1,
}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(list(STEPS)), st.integers(0, 5), st.integers(0, 5)), max_size=25))
def test_any_chain_of_operations_keeps_its_result(steps):
    """Random programs over a stack of [4, 4] matrices, from the operations that rules change."""

    def function(*inputs: Tensor) -> Tensor:
        known = list(inputs)
        for kind, i, j in steps:
            known.append(STEPS[kind](known[i % len(known)], known[j % len(known)]))
        return torch.stack([one.tanh() for one in known])

    agrees(function, (4, 4), (4, 4))


# --- derivatives, tasks ----------------------------------------------------------------------------------------------


def slope(weight: Tensor, x: Tensor, y: Tensor) -> list[Tensor]:
    """The derivative of a loss after one step of descent on another."""
    with torch.enable_grad():
        weight = weight.detach().requires_grad_()
        (first,) = torch.autograd.grad(((x @ weight).tanh() - y).square().sum(), weight, create_graph=True)
        loss = (x @ (weight - 0.1 * first)).square().sum()
        return [loss.detach(), *torch.autograd.grad(loss, weight)]


def test_derivatives_are_recorded_and_mapped_over_tasks():
    one = record(slope, numbers((3, 2), (5, 3), (5, 2)))
    weight, x, y = numbers((3, 2), (4, 5, 3), (4, 5, 2), seed=3)
    wanted = [torch.stack(each).mean(0) for each in zip(*(slope(weight, x[i], y[i]) for i in range(4)), strict=True)]
    for i in range(4):
        all_close(one(weight, x[i], y[i]), slope(weight, x[i], y[i]))
    program = over_tasks(one, [weight, *numbers((4, 5, 3), (4, 5, 2), seed=7)], shared=1)
    all_close(program(weight, x, y), wanted)


def test_what_all_tasks_share_is_computed_once():
    def function(weight: Tensor, x: Tensor) -> list[Tensor]:
        return [x @ (weight @ weight).exp()]

    one = record(function, numbers((3, 3), (2, 3)))
    inputs = numbers((3, 3), (5, 2, 3))
    program = over_tasks(one, inputs, shared=1)
    with torch.no_grad(), _Shapes() as seen:
        program(*inputs)
    assert (3, 3) in seen.of["exp"] and (5, 3, 3) not in seen.of["exp"]
    assert not seen.of.get("bmm")  # one product of a matrix for all tasks


class _Shapes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.of: dict[str, set[tuple[int, ...]]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor):
            self.of.setdefault(func.overloadpacket.__name__, set()).add(tuple(found.shape))
        return found


# --- constants -------------------------------------------------------------------------------------------------------


def test_a_tensor_from_outside_is_read_where_it_is():
    """So that weights which somebody changes, such as those of a frozen network, are not remembered as they were."""
    outside = torch.ones(3)
    program = record(lambda x: [x * outside + outside.view(3)], numbers((3,)))
    (x,) = numbers((3,), seed=1)
    outside.fill_(2.0)
    assert_close(program(x)[0], 2 * x + 2, 1e-12)


def test_a_tensor_made_on_the_way_is_remembered_as_it_was_when_read():
    def function(x: Tensor) -> Tensor:
        counter = torch.ones(2)
        first = x * counter
        counter += 1
        second = x * counter
        counter.zero_()
        return first + second

    agrees(function, (2,))


def test_results_are_fresh_where_a_program_is_asked_for_them_twice():
    program = record(
        lambda x: [torch.zeros(3), x + 1, x, x.view(3, 1), x + 1, x.unfold(0, 2, 1), x.split(1)[0], x[:2].unbind()[0]],
        numbers((3,)),
    )
    (x,) = numbers((3,), seed=1)
    kept = [tensor.clone() for tensor in program(x)]
    for tensor in program(x):
        tensor.add_(5)
    all_close(program(x), kept)


def test_a_constant_is_read_as_it_is_when_torch_counts_no_write():
    def function(x: Tensor) -> Tensor:
        counter = torch.ones(2)
        first = x * counter
        counter.data.add_(1)
        return first + x * counter

    agrees(function, (2,))


def test_the_sign_of_a_zero_is_part_of_a_constant():
    agrees(lambda x: x.copysign(torch.zeros(2)) + 2 * x.copysign(torch.tensor([-0.0, -0.0])), (2,))


def test_nothing_of_the_recording_is_held():
    """Neither the inputs nor what was computed on the way: 40 MB each time would soon be felt."""
    big = torch.randn(1000)
    alive = weakref.ref(big)
    program = record(lambda x: [(x.exp() * 2).sum()], [big])
    del big
    gc.collect()
    assert alive() is None and program(torch.zeros(1000))[0] == 2000


def test_what_is_gone_is_forgotten_on_the_way():
    """Notes on thousands of tensors that are gone would leave holes all over the memory: half as much again."""
    recorder = _Recorder()
    x = recorder.input(torch.ones(3))
    with recorder:
        for _ in range(1000):
            x = x * 1.01
    assert len(recorder.depending) <= 2 * 64 + 2


# --- writes ----------------------------------------------------------------------------------------------------------


class Gates(nn.Module):
    """As torch's own cells do: chunks of one tensor, each written to."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = (2 * x).unsafe_chunk(2, 1)
        return first.sigmoid_() * second.tanh_()


def relu_in_place(x: Tensor) -> Tensor:
    y = x * 2
    F.relu(y, inplace=True)
    return y + 1


def turned_in_place(x: Tensor) -> Tensor:
    return (x * 2).transpose_(0, 1).unsqueeze_(0)


def turned_beside_a_view(x: Tensor) -> Tensor:
    y = x * 2
    first = y[0]
    y.transpose_(0, 1)
    return first.sum() + y


def scattered(x: Tensor) -> Tensor:
    return torch.zeros(3, 4).scatter_(1, x.long().abs() % 4, x)


def filled_and_added(x: Tensor) -> Tensor:
    total = torch.zeros(3, 4)
    total += x
    total.mul_(2).add_(1)
    return total


@pytest.mark.parametrize(
    "function", [Gates(), relu_in_place, turned_in_place, turned_beside_a_view, scattered, filled_and_added]
)
def test_writing_to_a_new_tensor_is_making_another(function):
    agrees(function, (3, 4))


def test_torchs_recurrent_layers_are_recorded():
    layer = nn.LSTM(4, 4, batch_first=True)
    agrees(lambda x: layer(x)[0].detach(), (2, 3, 4))


def into_a_part(x: Tensor) -> Tensor:
    y = torch.zeros(3, 4)
    y[1] = x[0]
    return y + 1


def through_a_view(x: Tensor) -> Tensor:
    y = x * 2
    first = y[0]
    y.add_(1)
    return first + y


def into_a_part_of_another_part(x: Tensor) -> Tensor:
    y = x * 2
    above, below = y[:2], y[1:]
    above.add_(1)
    return below * 1


def into_a_part_of_the_result(x: Tensor) -> Tensor:
    y = x * 2
    y[0].add_(1)
    return y


def wider_into_narrower(x: Tensor) -> Tensor:
    total = x.to(torch.bfloat16)
    total += x
    return total.double()


def behind_torchs_back(x: Tensor) -> Tensor:
    y = torch.ones(3, 4)
    y.data = x * 2
    return y * 3


def of_a_layout(x: Tensor) -> Tensor:
    return (x * 2).as_strided((2,), (3,))


def into_the_input(x: Tensor) -> Tensor:
    return x.add_(1)


OUTSIDE = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (into_a_part, "writes into a part of a tensor that it reads again"),
        (through_a_view, "writes into a part of a tensor that it reads again"),
        (into_a_part_of_another_part, "writes into a part of a tensor that it reads again"),
        (into_a_part_of_the_result, "writes into a part of a tensor that it reads again"),
        (wider_into_narrower, "writes numbers of another type into a tensor"),
        (behind_torchs_back, "exchanges a tensor's values behind torch's back"),
        (of_a_layout, "counts on a layout in memory"),
        (lambda x: nn.Parameter(x.clone()) * 2, "gives a tensor another's memory behind torch's back"),
        (lambda x: nn.Parameter(x.detach()) * 2, "gives a tensor another's memory behind torch's back"),
        (lambda x: (x * 2).as_subclass(nn.Parameter) * 2, "gives a tensor another's memory behind torch's back"),
        (into_the_input, "writes to a tensor"),
        (lambda x: OUTSIDE.copy_(x), "writes to a tensor"),
        (lambda x: torch.add(x, 1, out=torch.empty(3, 4)), "writes to a tensor"),
        (lambda x: x + torch.rand(3, 4), "draws at random"),
        (lambda x: F.dropout(x, 0.5), "draws at random"),
        (lambda x: x * x.sum().item(), "decides on a tensor's values"),
        (lambda x: x if bool(x.sum() > 0) else -x, "decides on a tensor's values"),
        (lambda x: x[x > 0], "decides on a tensor's values"),
        (lambda x: F.one_hot((x > 0).long(), 2), "decides on a tensor's values"),  # on whether one is out of range
        (lambda x: x.nonzero().double(), "decides on a tensor's values"),
        (lambda x: (x > 0).long().unique().double(), "decides on a tensor's values"),
        (lambda x: x * x.tolist()[0][0], "reads a tensor's values in Python"),
        (lambda x: x * float(x.numpy().sum()), "reads a tensor's values in Python"),
        (lambda x: x * float(x.detach().__array__()[0, 0]), "reads a tensor's values in Python"),
        (lambda x: x * torch.tensor([*x[0]]), "reads a tensor's values in Python"),
        (lambda x: x * torch.as_tensor([x[0, 0], x[0, 1]])[0], "reads a tensor's values in Python"),
        (lambda x: x * x.new_tensor([x[0, 0]]), "reads a tensor's values in Python"),
        (lambda x: torch.tensor_split(x, x[:2, 0].long())[0], "reads a tensor's values in Python"),
        (lambda x: nn.Parameter(x), "gives a tensor another's memory behind torch's back"),
    ],
)
def test_what_cannot_be_recorded_says_why(function, why):
    with pytest.raises(RuntimeError, match=why):
        record(lambda x: [function(x)], numbers((3, 4)))


def test_a_decision_on_what_no_input_changes_is_taken_once():
    agrees(lambda x: x * 2 if bool(torch.arange(3).sum() > 2) else x, (3, 4))


def test_an_error_inside_is_the_programs_error_too():
    """A matrix that cannot be solved is told by replays as well, and not answered with what happens to lie there."""
    program = record(lambda a, b: [torch.linalg.solve(a, b)], [torch.eye(3) * 2, torch.ones(3, 1)])
    assert_close(program(torch.eye(3), torch.ones(3, 1))[0], torch.ones(3, 1), 1e-12)
    with pytest.raises(RuntimeError, match="singular"):
        program(torch.zeros(3, 3), torch.ones(3, 1))
