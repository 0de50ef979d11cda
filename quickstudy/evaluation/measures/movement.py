"""How far adaptation moves each layer: its weights, and its output for the same query inputs.

    weights          |phi_l - theta_l| / |theta_l|
    output           |h_phi - h_theta| / |h_theta|              h [n, p]: the layer's output at the n query inputs
    representation   1 - CKA(h_theta, h_phi),   CKA(X, Y) = |X^T Y|^2 / (|X^T X| |Y^T Y|)   with columns centred

All norms are Frobenius norms.

Raghu, Raghu, Bengio, Vinyals: Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of MAML, ICLR
2020, https://arxiv.org/abs/1909.09157
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from quickstudy.engine.fitting import for_test
from quickstudy.episodes import unstack
from quickstudy.errors import ConfigError
from quickstudy.evaluation.amount import Amount, aligned
from quickstudy.evaluation.choosing import chosen_engine
from quickstudy.evaluation.measures.similarity import cka, relative_change
from quickstudy.evaluation.metric import ERROR, Format
from quickstudy.evaluation.passes import begin, protocol_of, results
from quickstudy.evaluation.predictions import finite
from quickstudy.evaluation.protocol import Protocol
from quickstudy.learner import Batch, Episode, Learner, Theta, setting, takes
from quickstudy.nn.hooks import outputs_of
from quickstudy.nn.parameters import own, parameters

if TYPE_CHECKING:
    from quickstudy.base.figures import Bars

THREE_DIGITS = Format(spec=".3f", spread=".3f")
KINDS = ("representation", "output", "weights")
Moves = dict[str, dict[str, Tensor]]  # layer -> kind -> a scalar


@dataclass(frozen=True)
class LayerMovement:
    """How far one layer moves. A number is None where the layer starts at zero or its output cannot be recorded."""

    name: str
    representation: Amount | None  # 1 - linear CKA, from 0 (the same up to rotation and scale) to 1
    output: Amount | None  # relative to the output before
    weights: Amount | None  # relative to the weights before


@dataclass(frozen=True)
class Movement:
    """How far adaptation moves each layer that holds parameters, in the model's order, and the protocol."""

    layers: tuple[LayerMovement, ...]
    protocol: Protocol

    @property
    def most(self) -> str:
        """The layer whose representation moves most."""
        return max((one for one in self.layers if one.representation), key=_representation).name

    def __getitem__(self, name: str) -> LayerMovement:
        """The layer of that name. Raises KeyError when there is none."""
        return {one.name: one for one in self.layers}[name]

    def __str__(self) -> str:
        rows = [("layer", *KINDS)]
        rows += [(one.name, *(in_words(getattr(one, kind)) for kind in KINDS)) for one in self.layers]
        under = f"95 % CI over {self.protocol.episodes} episodes; {self.protocol.describe()}"
        return "\n".join([*aligned(rows), f"relative movement by adaptation ({under})"])

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for movement.json."""
        layers = [{"name": one.name} | {kind: _plain(getattr(one, kind)) for kind in KINDS} for one in self.layers]
        return {"layers": layers, "most": self.most, "protocol": self.protocol.to_dict()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Movement:
        """The movement that `to_dict` wrote. Raises ValueError, KeyError or TypeError for anything else."""
        layers = [
            LayerMovement(str(one["name"]), *(_amount_of(one[kind]) for kind in KINDS)) for one in plain["layers"]
        ]
        if not any(one.representation for one in layers):
            raise ValueError("it holds no layer's representation")
        return cls(tuple(layers), Protocol(**plain["protocol"]))

    def plot(self, path: str | os.PathLike) -> None:
        """Write the figure: bars per layer with 95 % intervals. The suffix of `path` is .png, .svg or .pdf."""
        from quickstudy.base.figures import bars, save  # matplotlib takes a second to import

        save(path, bars(*figure(self)))


def in_words(amount: Amount | None) -> str:
    """'0.123 ± 0.004', '0' where nothing moves at all, '-' where there is no number."""
    if amount is None or amount.mean == 0:
        return "-" if amount is None else "0"
    return f"{amount.mean:.3f}" if math.isinf(amount.low) else amount.in_words(THREE_DIGITS)


def _representation(one: LayerMovement) -> float:
    assert one.representation is not None
    return one.representation.mean


def _plain(amount: Amount | None) -> dict[str, float | None] | None:
    return None if amount is None else amount.to_dict()


def _amount_of(plain: Mapping[str, float | None] | None) -> Amount | None:
    return None if plain is None else Amount.from_dict(plain)


# --- measuring -------------------------------------------------------------------------------------------------------


def layer_movement(
    trained: Any,
    tasks: Any,
    *,
    episodes: int = 100,
    seed: int = 1,
    steps: int | None = None,
    engine: str = "auto",
    progress: Callable[[int], None] | None = None,
) -> Movement:
    """How far adaptation moves each layer of a gradient learner's model, over test episodes.

    `trained` has `.learner` and `.theta`. The episodes are those of `evaluate` with the same seed. The parameters after
    the learner's inner steps are compared with those before the first one. `steps` is the number of inner steps, if it
    differs from training. `engine` is as in `evaluate`. `progress(n)` is called with the number of episodes done since
    the last call.

    >>> import quickstudy as qs
    >>> learner = qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss, lr=0.01)
    >>> trained = qs.train(learner, qs.tasks.sinusoid("train"), iterations=2, meta_batch=2, progress=False)
    >>> movement = qs.layer_movement(trained, qs.tasks.sinusoid("test"), episodes=4)
    >>> movement.plot("movement.svg")  # doctest: +SKIP

    Raises ConfigError for a learner that does not adapt the parameters of a model by inner steps and for fewer than 1
    episode, NonFiniteError where a layer's values are not finite.
    """
    _check_model(trained.learner)
    learner, theta = for_test(trained.learner, tasks, steps), trained.theta
    one = begin(learner, theta, tasks, episodes, seed)
    layers = _checked_layers(learner, theta, unstack(one.first)[0].support)

    def measure(learner: Learner, episode: Episode) -> Moves:
        return episode_movement(learner, theta, episode)

    moves = list(results(one, measure, chosen_engine(one, measure, engine), progress))
    protocol = protocol_of(learner, tasks, "movement of layers", episodes, seed, seen=one.first)
    return Movement(tuple(_layer(name, moves) for name in layers), protocol)


def episode_movement(learner: Learner, theta: Theta, episode: Episode) -> Moves:
    """The movements of one task: layer -> kind -> a scalar."""
    model: nn.Module = learner.model  # type: ignore[attr-defined]
    before = own(model, theta) | _untouched(learner).adapt(theta, episode.support)
    after = own(model, theta) | learner.adapt(theta, episode.support)
    layers = layers_of(model)
    old, new = (outputs_of(list(layers), model, params, episode.query.x) for params in (before, after))
    moves: Moves = {
        name: {"weights": relative_change(*(_flat([p[key] for key in keys]) for p in (before, after)))}
        for name, keys in layers.items()
    }
    for name in old:
        h, changed = (torch.cat([t.flatten(1) for t in outputs[name]], 1) for outputs in (old, new))
        moves[name] |= {"output": relative_change(h, changed), "representation": 1 - cka(h, changed)}
    return moves


def _untouched(learner: Learner) -> Learner:
    """The learner without inner steps. It shows the start, which may hold more than theta (offsets, statistics)."""
    return dataclasses.replace(learner, steps=0)  # type: ignore[type-var]


def layers_of(model: nn.Module) -> dict[str, list[str]]:
    """The layers with trainable parameters of their own: layer -> names of its parameters."""
    layers: dict[str, list[str]] = {}
    for name in parameters(model):
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    return layers


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def _layer(name: str, moves: list[Moves]) -> LayerMovement:
    amounts = {}
    for kind in KINDS:
        values = [episode[name][kind] for episode in moves if kind in episode[name]]
        amounts[kind] = _amount(torch.stack(values), name) if values else None
    return LayerMovement(name or "model", **amounts)


def _amount(values: Tensor, name: str) -> Amount | None:
    says = f"the layer {name!r} values that are not finite. Lower the inner learning rate or the steps."
    infinite = values.isinf()  # the layer starts at zero
    finite(values.masked_fill(infinite, 0.0), says)
    return None if infinite.any() else Amount.of(values, ERROR)


# --- which learners --------------------------------------------------------------------------------------------------


def moves_layers(trained: Any, tasks: Any, steps: int | None = None) -> bool:
    """Whether `layer_movement` can be computed for this learner on these tasks.

    Raises DataError where the learner cannot use them at all.
    """
    try:
        _check_model(trained.learner)
        learner = for_test(trained.learner, tasks, steps)
        one = begin(learner, trained.theta, tasks, 1, 0)
        _checked_layers(learner, trained.theta, unstack(one.first)[0].support)
    except ConfigError:
        return False
    return True


def _check_model(learner: Learner) -> None:
    name = type(learner).__name__
    if not isinstance(setting(learner, "model"), nn.Module):
        raise ConfigError(f"{name} has no field `model`: there are no layers that could move. {ASKED}")
    if not takes(learner, "steps"):
        raise ConfigError(f"{name} takes no inner steps: its model does not move. {ASKED}")


def _checked_layers(learner: Learner, theta: Theta, support: Batch) -> list[str]:
    """The model's layers in the order in which it calls them, so that the last one is the head.

    Before them come those that it never calls, because another layer uses their weights. Raises ConfigError where phi
    is not a set of the model's own parameters, but a context, a new head or means.
    """
    model, name = learner.model, type(learner).__name__  # type: ignore[attr-defined]
    with torch.no_grad():
        phi = learner.adapt(theta, support)
    if not isinstance(phi, dict):
        raise ConfigError(f"{name} adapts a {type(phi).__name__}, not its model's parameters by name. {ASKED}")
    names = parameters(model)
    for key, value in phi.items():
        if key not in names and key.rpartition(".")[2] not in ("mean", "variance"):
            raise ConfigError(f"{name} adapts {key!r}, which is not a parameter of its model. {ASKED}")
        if key in names and value.shape != theta[key].shape:
            raise ConfigError(f"{name} gives each task a new {key!r}: there is nothing that it moved from. {ASKED}")
    layers = list(layers_of(model))
    called = list(outputs_of(layers, model, own(model, theta) | phi, support.x))
    if not called:
        raise ConfigError(f"the model of {name} calls none of its layers, so their outputs are not seen. {ASKED}")
    return [layer for layer in layers if layer not in called] + called


ASKED = "layer_movement is for learners that adapt their model's parameters by inner steps, such as MAML."

CHANGE = "1\xa0−\xa0CKA"
STILL = 0.01  # a layer whose representation changes by less counts as unmoved


def figure(movement: Movement) -> tuple[list[str], list[Bars]]:
    from quickstudy.base.figures import Bars

    representation, weights = (
        [getattr(one, kind) for one in movement.layers] for kind in ("representation", "weights")
    )
    panels = [Bars("representation", CHANGE, *_columns(representation), whole=1.0)]
    panels.append(Bars("weights", "|φ − θ| / |θ|", *_columns(weights), colour="s2"))
    return [one.name for one in movement.layers], panels


def _columns(amounts: list[Amount | None]) -> tuple[list[float | None], list[tuple[float, float]]]:
    return [a and a.mean for a in amounts], [(a.low, a.high) if a else (0.0, 0.0) for a in amounts]
