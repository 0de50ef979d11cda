"""Task embeddings: the vectors that a learner makes of tasks, shown in a plane and compared with facts about the tasks.

    embed(theta, support) -> [d]      for many test tasks, projected by PCA and, if scikit-learn is installed, by t-SNE

Whether neighbours are alike is measured in all d dimensions, not in the plane. A numeric fact of a task is predicted by
its mean over the five nearest other tasks, and R^2 says how well. For a fact in words, it is the share of the five
nearest tasks that have the same word, next to the share expected by chance.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from quickstudy.base import seeds
from quickstudy.engine.fitting import for_test
from quickstudy.errors import ConfigError, NonFiniteError
from quickstudy.evaluation.choosing import chosen_engine
from quickstudy.evaluation.metric import Metric
from quickstudy.evaluation.passes import begin, protocol_of, results
from quickstudy.evaluation.predictions import Predictions, Settings, predicted, score_of
from quickstudy.evaluation.protocol import Protocol
from quickstudy.learner import Episode, Learner, demand
from quickstudy.tasks.source import Source, source_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NEIGHBOURS = 5
FEWEST = 10  # with fewer tasks, neighbours mean nothing
Fact = tuple[float, ...] | tuple[str, ...]


class FromNeighbours(NamedTuple):
    """How well a task's neighbours predict a fact (R^2 for numbers, share of the same word), and that by chance."""

    value: float
    chance: float


@dataclass(frozen=True, eq=False)
class TaskEmbeddings:
    """Tasks as points in a plane, with facts about them. `vectors` [n, d] are not written to files."""

    planes: Mapping[str, Tensor]  # "PCA", "t-SNE" -> places [n, 2]
    facts: Mapping[str, Fact]  # name of a fact -> a number or word for each task
    from_neighbours: Mapping[str, FromNeighbours]  # how well the nearest other tasks predict each fact
    share: float  # of the vectors' variance that lies in the plane of PCA
    length: int  # d
    protocol: Protocol
    vectors: Tensor | None = None

    def __str__(self) -> str:
        said = [f"{name}: {in_words(self.facts[name], one)}" for name, one in self.from_neighbours.items()]
        plane = f"two directions of {self.length} hold {100 * self.share:.0f} % of the variance"
        under = f"{self.protocol.episodes} tasks; {self.protocol.describe()}"
        return "\n".join([*said, f"{plane} ({under})"])

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for embeddings.json."""
        places = {name: [[float(f"{v:.5g}") for v in row] for row in at.tolist()] for name, at in self.planes.items()}
        facts = {name: list(values) for name, values in self.facts.items()}
        plain = {"planes": places, "facts": facts, "share": self.share, "length": self.length}
        plain["from_neighbours"] = {name: list(one) for name, one in self.from_neighbours.items()}
        return plain | {"protocol": self.protocol.to_dict()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> TaskEmbeddings:
        """The embeddings that `to_dict` wrote. Raises ValueError, KeyError or TypeError for anything else."""
        planes = {str(name): torch.tensor(at, dtype=torch.float64) for name, at in plain["planes"].items()}
        facts = {str(name): _fact(values) for name, values in plain["facts"].items()}
        n, known = len(planes["PCA"]), plain["told" if "told" in plain else "from_neighbours"]  # earlier versions: told
        if any(at.shape != (n, 2) or not torch.isfinite(at).all() for at in planes.values()):
            raise ValueError("the planes do not hold as many places")
        if any(len(values) != n for values in facts.values()) or known.keys() != facts.keys():
            raise ValueError("the facts are not of as many tasks")
        fits = {name: FromNeighbours(*map(float, one)) for name, one in known.items()}
        return cls(planes, facts, fits, float(plain["share"]), int(plain["length"]), Protocol(**plain["protocol"]))

    @property
    def told(self) -> Mapping[str, FromNeighbours]:
        """Deprecated: `from_neighbours`."""
        return self.from_neighbours

    def plot(self, path: str | os.PathLike) -> None:
        """Write the figure, a panel for each plane and fact. The suffix of `path` is .png, .svg or .pdf."""
        from quickstudy.base.figures import save  # matplotlib takes a second to import

        save(path, lambda colours: figure(self, colours))


def in_words(values: Fact, fit: FromNeighbours) -> str:
    """How well the neighbours predict a fact, as a phrase."""
    if isinstance(values[0], str):
        chance = f"{100 * fit.chance:.0f} % by chance"
        return f"{100 * fit.value:.0f} % of the {NEIGHBOURS} nearest tasks have the same ({chance})"
    return f"R² {fit.value:.2f} from the {NEIGHBOURS} nearest tasks"


def _fact(values: Sequence[Any]) -> Fact:
    """Numbers as numbers, anything else as words."""
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return tuple(float(value) for value in values)
    return tuple(str(value) for value in values)


# --- measuring -------------------------------------------------------------------------------------------------------


def task_embeddings(
    trained: Any,
    tasks: Any,
    *,
    episodes: int = 300,
    seed: int = 1,
    engine: str = "auto",
    metric: str | Metric | None = None,
    progress: Callable[[int], None] | None = None,
    made: Predictions | None = None,
) -> TaskEmbeddings:
    """The embeddings of test tasks in a plane, and whether neighbours are alike.

    `trained` has `.learner` and `.theta`; the learner needs an `embed` (as cnaps, cnp, anp, cavia and leo have). The
    episodes are those of `evaluate` with the same seed. Facts come from `tasks.facts`; if the source has none, the fact
    is the learner's own score on each task, by `metric` as in `evaluate`. `made`: its predictions for these episodes,
    if they are known already. `engine` is as in `evaluate`. `progress(n)` is called with the number of episodes done
    since the last call.

    >>> import torch, quickstudy as qs
    >>> learner = qs.CNP(torch.nn.Flatten(), width=1, representation=16)
    >>> trained = qs.train(learner, qs.tasks.sinusoid("train"), iterations=2, meta_batch=2, progress=False)
    >>> found = qs.task_embeddings(trained, qs.tasks.sinusoid("test"), episodes=20)
    >>> sorted(found.facts)
    ['amplitude', 'phase']
    >>> found.plot("tasks.svg")  # doctest: +SKIP

    Raises ConfigError for learners without an `embed` and for fewer than 10 episodes, NonFiniteError where an embedding
    is not finite.
    """
    demand(trained.learner, "embed")
    if episodes < FEWEST:
        raise ConfigError(f"neighbours need at least {FEWEST} episodes, got {episodes}.")
    learner, theta, source = for_test(trained.learner, tasks), trained.theta, source_of(tasks)
    one, known = begin(learner, theta, source, episodes, seed), _facts(source, episodes, seed)

    def measure(learner: Learner, episode: Episode) -> Tensor:
        return learner.embed(theta, episode.support)

    vectors = torch.stack(list(results(one, measure, chosen_engine(one, measure, engine), progress))).double()
    if not torch.isfinite(vectors).all():
        raise NonFiniteError(f"{type(learner).__name__} gives embeddings that are not finite.")
    if not known:
        made = made or predicted(learner, (theta,), source, Settings(episodes, seed, metric, engine))
        known = {made.metric.short: tuple(score_of(made).values.tolist())}
    protocol = protocol_of(learner, source, "embeddings of tasks", episodes, seed, seen=one.first)
    return embedded(vectors, known, protocol)


def _facts(source: Source, episodes: int, seed: int) -> dict[str, Fact]:
    """The facts of the test episodes, which are drawn one by one as the episodes are; {} where there are none."""
    if not source.facts(1, seeds.generator(seed, "test", 0)):
        return {}
    each = [source.facts(1, seeds.generator(seed, "test", i)) for i in range(episodes)]
    return {name: _fact([_number_or_word(one[name][0]) for one in each]) for name in each[0]}


def _number_or_word(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


def embedded(vectors: Tensor, facts: Mapping[str, Fact], protocol: Protocol) -> TaskEmbeddings:
    """Vectors [n, d] in their planes, and how well neighbours predict the facts."""
    centred = (vectors - vectors.mean(0)).numpy()
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:2] * np.sign(axes[:2].sum(1, keepdims=True) + 1e-30)  # an axis may point either way: fix it
    pca = np.zeros((len(centred), 2))
    pca[:, : len(axes)] = centred @ axes.T
    planes = {"PCA": torch.from_numpy(pca)} | _tsne(centred, pca)
    nearest = _nearest(vectors)
    facts = {name: values for name, values in facts.items() if len(set(values)) > 1}  # drop constant facts
    fits = {name: _from_neighbours(values, nearest) for name, values in facts.items()}
    share = float((sizes[:2] ** 2).sum() / max((sizes**2).sum(), 1e-300))
    return TaskEmbeddings(planes, dict(facts), fits, share, vectors.shape[1], protocol, vectors)


def _tsne(centred: np.ndarray, start: np.ndarray) -> dict[str, Tensor]:
    """The plane of t-SNE, which starts from another plane; empty without scikit-learn."""
    try:
        from sklearn.manifold import TSNE  # type: ignore[import-not-found]
    except ImportError:
        return {}
    if not centred.any():
        return {}
    small = start * (1e-4 / start.std(0).max())  # as scikit-learn scales its own initialisation
    made = TSNE(2, perplexity=min(30.0, (len(centred) - 1) / 3), init=small.astype(np.float32), random_state=0)
    return {"t-SNE": torch.from_numpy(np.asarray(made.fit_transform(centred), dtype=np.float64))}


def _nearest(vectors: Tensor) -> Tensor:
    """The nearest other tasks of each task [n, NEIGHBOURS]."""
    away = torch.cdist(vectors, vectors)
    return away.fill_diagonal_(torch.inf).argsort(1)[:, :NEIGHBOURS]


def _from_neighbours(values: Fact, nearest: Tensor) -> FromNeighbours:
    if isinstance(values[0], str):
        numbers = {name: i for i, name in enumerate(dict.fromkeys(values))}
        own = torch.tensor([numbers[value] for value in values])
        n, counts = len(values), Counter(values).values()
        return FromNeighbours(
            float((own[nearest] == own[:, None]).double().mean()), sum(c * (c - 1) for c in counts) / n / (n - 1)
        )
    own = torch.tensor(values, dtype=torch.float64)
    left = ((own[nearest].mean(1) - own) ** 2).mean() / own.var(correction=0)
    return FromNeighbours(1 - float(left), 0.0)


STEPS = 8  # colours of a colour scale: enough to show a trend, and few enough for its key
MARKS = ("o", "^", "s")  # three marks times six colours distinguish 18 groups
SEEN = 0.3  # from this R^2 on it can be read off in part


def figure(e: TaskEmbeddings, colours: Mapping[str, str]) -> Figure:
    """A row for each plane and a column for each fact. With one fact or none, planes are side by side with one key."""
    from matplotlib.figure import Figure

    names: list[str | None] = [*e.facts] or [None]
    panels = [(plane, name) for plane in e.planes for name in names]
    columns = len(names) if len(names) > 1 else len(e.planes)
    size = (0.4 + 3.6 * columns, 0.3 + 2.9 * len(panels) / columns)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(panels) // columns, columns, squeeze=False)
    for i, (axes, (plane, name)) in enumerate(zip(grid.flat, panels, strict=True)):
        fact = None if name is None else e.facts[name]
        keyed = len(names) > 1 or i == len(panels) - 1
        _panel(axes, plane, e.planes[plane].numpy(), name, fact, colours, keyed)
    return figure


def _panel(
    axes: Axes,
    plane: str,
    places: np.ndarray,
    name: str | None,
    fact: Fact | None,
    colours: Mapping[str, str],
    keyed: bool,
) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    axes.set(xticks=[], yticks=[])
    axes.set_title(plane if name is None else f"{plane}, by {name}", fontsize=10.5, loc="left", parse_math=False)
    if fact is None or name is None:
        axes.scatter(*places.T, s=12, color=colours["s1"])
    elif isinstance(fact[0], str):
        _groups(axes, places, [str(value) for value in fact], colours, keyed)
    else:
        scale = ListedColormap(colormaps["viridis"](np.linspace(0, 1, STEPS)))
        points = axes.scatter(*places.T, c=np.asarray(fact, dtype=float), s=12, cmap=scale, linewidths=0)
        if keyed:
            key = axes.figure.colorbar(points, ax=axes, fraction=0.05, pad=0.02)  # type: ignore[union-attr]
            key.outline.set_visible(False)  # type: ignore[operator]
            key.ax.tick_params(length=0)


def _groups(axes: Axes, places: np.ndarray, fact: list[str], colours: Mapping[str, str], keyed: bool) -> None:
    """Draw the largest groups in their own colours and marks, and all others in grey."""
    from quickstudy.base.figures import SERIES

    looks = [(colours[colour], mark) for mark in MARKS for colour in SERIES]
    largest = [name for name, _ in Counter(fact).most_common(len(looks))]
    rest = np.array([name not in largest for name in fact])
    axes.scatter(*places[rest].T, s=12, color=colours["line"])
    for name, (colour, mark) in zip(sorted(largest), looks, strict=False):
        inside = np.array([value == name for value in fact])
        axes.scatter(*places[inside].T, s=14, color=colour, marker=mark, label=_short(name), linewidths=0)
    if not keyed:
        return
    key = axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8, handletextpad=0.1)
    for text in key.get_texts():
        text.set_parse_math(False)


def _short(name: str) -> str:
    plain = name.replace("_", " ").strip()
    return plain if len(plain) <= 20 else f"{plain[:19]}…"
