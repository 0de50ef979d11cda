"""The contestants of the speed benchmark: ways to compute the mean meta-loss of MAML and its second-order gradient.

A way takes a `Problem`, prepares what is needed only once (a copy of the model, optimizers; not timed) and returns a
function that computes the loss and the gradients from the weights. That function is timed. Peers are imported inside
their ways, so that a missing or broken peer does not affect the others. Where every parameter has a learned rate
(MetaSGD), the gradients of the rates follow those of the parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module, metadata, util
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import quickstudy as qs
from benchmarks.speed import built
from benchmarks.speed.cases import Problem
from quickstudy.engine.engines import PLAIN, PROGRAMS
from quickstudy.episodes import unstack

Result = tuple[Tensor, list[Tensor]]  # the mean meta-loss, its gradient in the order of model.parameters()
Way = Callable[[Problem], Callable[[], Result]]


def plain_training(problem: Problem) -> Callable[[], Result]:
    """The floor: the same number of forward and backward passes of one network over all examples, without
    meta-learning.
    """
    model = copy.deepcopy(problem.model)
    parameters = list(model.parameters())
    support, query = (qs.Batch(x.flatten(0, 1), y.flatten(0, 1)) for x, y in problem.episodes)
    passes = [support] * problem.steps + [query]

    def compute() -> Result:
        loss, gradients = torch.zeros(()), ()
        for batch in passes:
            loss = problem.loss(model(batch.x), batch.y)
            gradients = torch.autograd.grad(loss, parameters)
        return loss.detach(), list(gradients)

    return compute


# --- Quickstudy ------------------------------------------------------------------------------------------------------


def learner(problem: Problem, **more: Any) -> qs.Learner:
    cls = qs.MetaSGD if problem.rates else qs.MAML
    return cls(copy.deepcopy(problem.model), loss=problem.loss, lr=problem.lr, steps=problem.steps, **more)


def quickstudy(problem: Problem, engine: str, **more: Any) -> Callable[[], Result]:
    own = learner(problem, **more)
    theta = own.init()

    def compute() -> Result:
        loss, gradient = qs.meta_gradient(own, theta, problem.episodes, engine)
        return loss, list(gradient.values())

    return compute


def higher_patched_once(problem: Problem) -> Callable[[], Result]:
    """higher as in its README, but with one context and one backward pass for all tasks.

    Patching the model anew for each task takes 1.1 to 1.8 times as long.
    """
    innerloop = partial(import_module("higher").innerloop_ctx, copy_initial_weights=False, track_higher_grads=True)
    model, rates = _own(problem)
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD([{"params": [p]} for p in parameters] if rates else parameters, lr=problem.lr)
    override = {"lr": rates} if rates else None
    tasks = unstack(problem.episodes)

    def compute() -> Result:
        losses = []
        with innerloop(model, optimizer, override=override) as (patched, inner):
            start = patched.fast_params
            for support, query in tasks:
                patched.update_params(start)
                for _ in range(problem.steps):
                    inner.step(problem.loss(patched(support.x), support.y))
                losses.append(problem.loss(patched(query.x), query.y))
        return _differentiate(torch.stack(losses).mean(), parameters + rates)

    return compute


def torchopt_meta_optimizer(problem: Problem) -> Callable[[], Result]:
    """torchopt as in its few-shot example: MetaSGD updates the module itself; its state is restored after each task."""
    torchopt = import_module("torchopt")
    model, rates = _own(problem)
    parameters = list(model.parameters())
    containers = torchopt.utils.extract_module_containers(model, with_buffers=False)[0]
    order = [next(i for i, p in enumerate(parameters) if p is leaf) for leaf in torchopt.pytree.tree_leaves(containers)]
    inner = torchopt.MetaOptimizer(model, _torchopt_rule(problem, [rates[i] for i in order if rates]))
    model_state = torchopt.extract_state_dict(model, by="reference", detach_buffers=True)
    inner_state = torchopt.extract_state_dict(inner, by="reference")
    tasks = unstack(problem.episodes)

    def compute() -> Result:
        losses = []
        for support, query in tasks:
            for _ in range(problem.steps):
                inner.step(problem.loss(model(support.x), support.y))
            losses.append(problem.loss(model(query.x), query.y))
            torchopt.recover_state_dict(model, model_state)
            torchopt.recover_state_dict(inner, inner_state)
        return _differentiate(torch.stack(losses).mean(), parameters + rates)

    return compute


def torchopt_vmap(problem: Problem) -> Callable[[], Result]:
    """torchopt as in its functorch example (maml_omniglot_vmap): the functional API under vmap, all tasks at once."""
    torchopt = import_module("torchopt")
    model, rates = _own(problem)
    names, start = zip(*model.named_parameters(), strict=True)
    inner = _torchopt_rule(problem, rates)

    def loss_at(phi: tuple[Tensor, ...], batch: qs.Batch) -> Tensor:
        named = dict(zip(names, phi, strict=True))
        return problem.loss(torch.func.functional_call(model, named, (batch.x,)), batch.y)

    def task_loss(episode: qs.Episode) -> Tensor:
        phi, state = start, inner.init(start)
        for _ in range(problem.steps):
            updates, state = inner.update(torch.func.grad(loss_at)(phi, episode.support), state, inplace=False)
            phi = torchopt.apply_updates(phi, updates, inplace=False)
        return loss_at(phi, episode.query)

    return lambda: _differentiate(torch.func.vmap(task_loss)(problem.episodes).mean(), [*start, *rates])


def _torchopt_rule(problem: Problem, rates: list[Tensor]) -> Any:
    """Plain gradient descent; with learned rates, a custom gradient transformation."""
    torchopt = import_module("torchopt")
    if not rates:
        return torchopt.sgd(lr=problem.lr, moment_requires_grad=True)

    def update(gradients: Any, state: Any, *, params: Any = None, inplace: bool = True) -> tuple[Any, Any]:
        return tuple(-rate * g for rate, g in zip(rates, gradients, strict=True)), state

    return torchopt.base.GradientTransformation(lambda params: torchopt.base.EmptyState(), update)


def learn2learn_clones(problem: Problem) -> Callable[[], Result]:
    """learn2learn as in its README: a differentiable clone of the module for each task, adapted step by step."""
    name = "MetaSGD" if problem.rates else "MAML"
    module = built.learn2learn("algorithms.meta_sgd" if problem.rates else "algorithms.maml")
    wrapped = getattr(module, name)(copy.deepcopy(problem.model), lr=problem.lr)
    parameters = [*wrapped.module.parameters(), *(wrapped.lrs if problem.rates else ())]
    tasks = unstack(problem.episodes)

    def compute() -> Result:
        losses = []
        for support, query in tasks:
            clone = wrapped.clone()
            for _ in range(problem.steps):
                clone.adapt(problem.loss(clone(support.x), support.y))
            losses.append(problem.loss(clone(query.x), query.y))
        return _differentiate(torch.stack(losses).mean(), parameters)

    return compute


def _own(problem: Problem) -> tuple[nn.Module, list[Tensor]]:
    """A copy of the model, and a rate for each parameter where rates are learned."""
    model = copy.deepcopy(problem.model)
    rates = [torch.full_like(p, problem.lr).requires_grad_() for p in model.parameters()] if problem.rates else []
    return model, rates


def _differentiate(loss: Tensor, parameters: Sequence[Tensor]) -> Result:
    return loss.detach(), list(torch.autograd.grad(loss, parameters))


# --- all -------------------------------------------------------------------------------------------------------------

PEERS: dict[str, dict[str, Way]] = {
    "higher": {"patched once": higher_patched_once},
    "torchopt": {"MetaSGD": torchopt_meta_optimizer},
    "torchopt under vmap": {"vmap": torchopt_vmap},  # its functional API, mapped over tasks by torch
    "learn2learn": {"clones": learn2learn_clones},
}
MAPPED = ("torchopt under vmap",)  # peers for which torch, not the library, maps over tasks
LIBRARIES: dict[str, dict[str, Way]] = {
    "quickstudy": {engine: partial(quickstudy, engine=engine) for engine in (*PLAIN, *PROGRAMS)},
    "quickstudy adjoints": {
        adjoint: partial(quickstudy, engine="loop", adjoint=adjoint) for adjoint in ("unroll", "remat", "mixed")
    },
    "quickstudy adjoints, replayed": {
        adjoint: partial(quickstudy, engine="replay", adjoint=adjoint) for adjoint in ("unroll", "remat")
    },
    "floor": {"plain training": plain_training},
    **PEERS,
}


def ways(library: str, problem: Problem) -> dict[str, Way]:
    """The ways of a library. For models with attention, peers also get ways with its mathematical implementation,
    because torch's fused attention has no second derivative.
    """
    found = LIBRARIES[library]
    if library not in PEERS or not any(isinstance(layer, nn.MultiheadAttention) for layer in problem.model.modules()):
        return found
    return found | {f"{name}, mathematical attention": partial(_mathematical, way=way) for name, way in found.items()}


def _mathematical(problem: Problem, way: Way) -> Callable[[], Result]:
    compute = way(problem)

    def within() -> Result:
        with sdpa_kernel(SDPBackend.MATH):
            return compute()

    return within


def missing(library: str) -> bool:
    package = library.split()[0]  # the first word, as in "quickstudy adjoints" or "torchopt under vmap"
    return not built.folder().exists() if package == "learn2learn" else util.find_spec(package) is None


def versions() -> dict[str, str]:
    """The versions of torch and of the installed peers."""
    found = {name: metadata.version(name) for name in ("torch", "higher", "torchopt") if not missing(name)}
    return found | ({} if missing("learn2learn") else {"learn2learn": built.VERSION})
