"""Problems with known answers: closed forms derived by hand in numpy, and small tasks, networks and comparisons."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import quickstudy as qs
from quickstudy.learner import Batch, Episode, Learner, Theta

# --- linear regression -----------------------------------------------------------------------------------------------
# y = X w, L(w) = |X w - y|^2 / n, so grad L = 2 X^T (X w - y) / n and H = 2 X^T X / n does not depend on w.


class Linear(NamedTuple):
    """One task of linear regression: support x [n, d], y [n]; query likewise."""

    x: np.ndarray
    y: np.ndarray
    xq: np.ndarray
    yq: np.ndarray


def linear_tasks(count: int, d: int = 3, n: int = 7, m: int = 5, seed: int = 0) -> list[Linear]:
    rng = np.random.default_rng(seed)
    return [
        Linear(rng.normal(size=(n, d)), rng.normal(size=n), rng.normal(size=(m, d)), rng.normal(size=m))
        for _ in range(count)
    ]


def as_episodes(tasks: list[Linear]) -> Episode:
    """The same tasks as a batch of episodes."""
    x, y, xq, yq = (torch.as_tensor(np.stack(part)) for part in zip(*tasks, strict=True))
    return Episode(Batch(x, y[..., None]), Batch(xq, yq[..., None]))


def squared_loss(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean((x @ w - y) ** 2))


def squared_slope(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 2 * x.T @ (x @ w - y) / len(y)


def squared_hessian(x: np.ndarray) -> np.ndarray:
    return 2 * x.T @ x / len(x)


def maml_closed_form(w: np.ndarray, task: Linear, lr: float, steps: int) -> tuple[float, np.ndarray]:
    """L_Q(phi) and its gradient (I - lr H)^steps grad L_Q(phi), as phi is affine in w with that matrix."""
    loss, slope = fomaml_closed_form(w, task, lr, steps)
    shrink = np.eye(len(w)) - lr * squared_hessian(task.x)
    return loss, np.linalg.matrix_power(shrink, steps).T @ slope


def fomaml_closed_form(w: np.ndarray, task: Linear, lr: float, steps: int) -> tuple[float, np.ndarray]:
    """L_Q(phi) and grad L_Q at phi."""
    phi = w
    for _ in range(steps):
        phi = phi - lr * squared_slope(phi, task.x, task.y)
    return squared_loss(phi, task.xq, task.yq), squared_slope(phi, task.xq, task.yq)


def average(results: list[tuple[float, np.ndarray]]) -> tuple[float, np.ndarray]:
    losses, slopes = zip(*results, strict=True)
    return float(np.mean(losses)), np.mean(slopes, axis=0)


# --- classifiers, written out ----------------------------------------------------------------------------------------


def softmax_descent(z: np.ndarray, y: np.ndarray, ways: int, lr: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Logistic regression from zero by full-batch descent on mean cross entropy: weight [ways, d] and bias [ways].

    grad W = (softmax(Z W^T + b) - Y)^T Z / n, and the same without Z for the bias.
    """
    weight, bias, wanted = np.zeros((ways, z.shape[1])), np.zeros(ways), np.eye(ways)[y]
    for _ in range(steps):
        logits = z @ weight.T + bias
        odds = np.exp(logits - logits.max(1, keepdims=True))
        wrong = odds / odds.sum(1, keepdims=True) - wanted
        weight, bias = weight - lr * wrong.T @ z / len(z), bias - lr * wrong.mean(0)
    return weight, bias


def nearest_mean_logits(z: np.ndarray, y: np.ndarray, zq: np.ndarray, ways: int) -> np.ndarray:
    """-|z - c_k|^2 by a plain double loop."""
    means = [z[y == k].mean(0) for k in range(ways)]
    return np.array([[-sum((a - b) ** 2 for a, b in zip(q, c, strict=True)) for c in means] for q in zq])


# --- small tasks and networks ----------------------------------------------------------------------------------------


def clusters(
    shape: tuple[int, ...] = (4,), classes: int = 6, each: int = 20, spread: float = 0.5, seed: int = 0, **sizes: int
) -> qs.tasks.ClassTasks:
    """Classes as Gaussian clouds around random points: a problem that every classifier solves."""
    drawn = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 1, *shape, generator=drawn)
    examples = centres + spread * torch.randn(classes, each, *shape, generator=drawn)
    sizes = {"ways": 3, "shots": 2, "queries": 2} | sizes
    names = [f"class {i}" for i in range(classes)]
    starts = torch.arange(0, classes * each + 1, each)
    return qs.tasks.ClassTasks(examples.flatten(0, 1), starts, names, name="clusters", **sizes)


def random_episodes(
    tasks: int = 3, shape: tuple[int, ...] = (4,), ways: int | None = 3, shots: int = 2, queries: int = 2, seed: int = 0
) -> Episode:
    """Inputs and answers without structure: generic data. Regression (one output) when `ways` is None."""
    drawn = torch.Generator().manual_seed(seed)

    def batch(each: int) -> Batch:
        n = each * (ways or 3)
        x = torch.randn(tasks, n, *shape, generator=drawn)
        if ways is None:
            return Batch(x, torch.randn(tasks, n, 1, generator=drawn))
        return Batch(x, torch.stack([torch.randperm(n, generator=drawn) % ways for _ in range(tasks)]))

    return Episode(batch(shots), batch(queries))


def smooth_conv(norm: str = "none", classes: int | None = 3) -> nn.Module:
    """Two small convolutions for images [1, 6, 6], with GELU so that every derivative exists."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (a, b) in enumerate(((1, 3), (3, 2))):
        layers[f"conv{i + 1}"] = nn.Conv2d(a, b, 3, stride=2, padding=1)
        layers[f"norm{i + 1}"] = qs.nn.norm(norm, b)
        layers[f"gelu{i + 1}"] = nn.GELU()
    layers["flatten"] = nn.Flatten()
    if classes is not None:
        layers["head"] = nn.Linear(8, classes)
    return nn.Sequential(layers)


def by_name(x: Tensor) -> dict[str, Tensor]:
    """Inputs [..., d] as two arguments of `Mixed`: the numbers, and a kind that they tell."""
    return {"values": x, "kind": (x[..., 0] > 0).long()}


def in_order(x: Tensor) -> tuple[Tensor, ...]:
    """The same two arguments without their names."""
    return tuple(by_name(x).values())


class Mixed(nn.Module):
    """A smooth network of two inputs of different types: numbers [n, 4], and kinds [n], 0 or 1."""

    def __init__(self, outputs: int | None = 3) -> None:
        super().__init__()
        self.values, self.kinds = nn.Linear(4, 5), nn.Embedding(2, 5)
        self.head = nn.Identity() if outputs is None else nn.Linear(5, outputs)

    def forward(self, values: Tensor, kind: Tensor) -> Tensor:
        return self.head(torch.tanh(self.values(values) + self.kinds(kind)))


@dataclass(frozen=True, eq=False)
class WithInputs:
    """A task source whose inputs are changed: those of another one, nested by `inputs`."""

    tasks: Any
    inputs: Callable[[Tensor], Any]

    @property
    def ways(self) -> int | None:
        return self.tasks.ways

    def sample(self, n: int, generator: torch.Generator | None = None) -> Episode:
        return with_inputs(self.tasks.sample(n, generator), self.inputs)

    def replace(self, **changes: Any) -> WithInputs:
        return WithInputs(self.tasks.replace(**changes), self.inputs)


def with_inputs(episodes: Episode, inputs: Callable[[Tensor], Any]) -> Episode:
    return Episode(*(batch._replace(x=inputs(batch.x)) for batch in episodes))


@contextmanager
def cores(count: int) -> Iterator[None]:
    """Let torch use so many threads, as the engine "threads" then does; one again afterwards, see conftest."""
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(1)


def meta_gradient(learner: Learner, theta: Theta, episodes: Episode, name: str) -> tuple[Tensor, Theta]:
    """`qs.meta_gradient`, with two threads for the engine that uses them."""
    with cores(2 if name == "threads" else 1):
        return qs.meta_gradient(learner, theta, episodes, name)


def map_tasks(function: Callable[[Episode], Any], episodes: Episode, name: str) -> Any:
    """`qs.map_tasks`, with two threads for the engine that uses them."""
    with cores(2 if name == "threads" else 1):
        return qs.map_tasks(function, episodes, name)


# --- comparisons -----------------------------------------------------------------------------------------------------


def assert_close(a: Any, b: Any, relative: float) -> None:
    """Tensors, or dicts of them, equal up to `relative` times the largest entry of b."""
    if isinstance(b, Mapping):
        assert a.keys() == b.keys()
        for name in b:
            assert_close(a[name], b[name], relative)
        return
    assert a.shape == b.shape and a.dtype == b.dtype
    a, b = a.detach(), b.detach()
    scale = float(b.abs().max()) if b.numel() else 0.0
    assert torch.allclose(a, b, rtol=0, atol=relative * max(scale, 1e-3)), f"differs by {float((a - b).abs().max()):g}"


def snapshot(*values: Any) -> Callable[[], bool]:
    """Whether all tensors in `values` (nested tuples, dicts, modules) are still bit-identical to now."""
    before = [t.detach().clone() for t in tensors_of(values)]
    return lambda: all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(before, tensors_of(values), strict=True)
    )


def tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, nn.Module):
        return [*value.parameters(), *value.buffers()]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    return [t for part in parts for t in tensors_of(part)]


def directional(function: Callable[[Theta], float], theta: Theta, towards: Theta, h: float = 1e-5) -> float:
    """Central difference of `function` at theta along `towards`, with error of order h^2."""

    def at(s: float) -> float:
        return function({name: value + s * towards[name] for name, value in theta.items()})

    return (at(h) - at(-h)) / (2 * h)
