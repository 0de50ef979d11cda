"""The contestants: the ways in which a library computes the mean meta-loss of MAML and its second-order gradient.

A way takes a `Problem`, prepares what can be prepared once (a copy of the model, optimizers; not timed) and returns a
function that computes the loss and the gradients anew from the weights; that function is what is timed. Peers are
imported inside their ways, so that one that is missing or broken concerns nobody else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module

import torch
from torch import Tensor, nn

import quickstudy as qs
from quickstudy.engine import unstack


@dataclass(frozen=True)
class Problem:
    """What every contestant is given: the same weights, the same tasks."""

    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    lr: float  # of the inner loop
    steps: int  # of the inner loop
    episodes: qs.Episode  # [tasks, examples, ...]


Result = tuple[Tensor, list[Tensor]]  # the mean meta-loss, its gradient in the order of model.parameters()
Way = Callable[[Problem], Callable[[], Result]]


def plain_training(problem: Problem) -> Callable[[], Result]:
    """The floor: as many forward and backward passes of one network over all examples, without meta-learning."""
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


def quickstudy(problem: Problem, engine: str) -> Callable[[], Result]:
    learner = qs.MAML(copy.deepcopy(problem.model), loss=problem.loss, lr=problem.lr, steps=problem.steps)
    theta = learner.init()

    def compute() -> Result:
        loss, gradient = qs.meta_gradient(learner, theta, problem.episodes, engine)
        return loss, list(gradient.values())

    return compute


def higher_patched_once(problem: Problem) -> Callable[[], Result]:
    """As its README, but in one context and with one backward: patching anew for each task costs 1.1 to 1.8 times."""
    innerloop = partial(import_module("higher").innerloop_ctx, copy_initial_weights=False, track_higher_grads=True)
    model = copy.deepcopy(problem.model)
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=problem.lr)
    tasks = unstack(problem.episodes)

    def compute() -> Result:
        losses = []
        with innerloop(model, optimizer) as (patched, inner):
            start = patched.fast_params
            for support, query in tasks:
                patched.update_params(start)
                for _ in range(problem.steps):
                    inner.step(problem.loss(patched(support.x), support.y))
                losses.append(problem.loss(patched(query.x), query.y))
        return _differentiate(torch.stack(losses).mean(), parameters)

    return compute


def torchopt_meta_sgd(problem: Problem) -> Callable[[], Result]:
    """As its few-shot example: MetaSGD steps the module itself, whose state is set back after each task."""
    torchopt = import_module("torchopt")
    model = copy.deepcopy(problem.model)
    parameters = list(model.parameters())
    inner = torchopt.MetaSGD(model, lr=problem.lr)
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
        return _differentiate(torch.stack(losses).mean(), parameters)

    return compute


def torchopt_vmap(problem: Problem) -> Callable[[], Result]:
    """As its functorch example (maml_omniglot_vmap): the functional API under vmap, all tasks at once."""
    torchopt = import_module("torchopt")
    model = copy.deepcopy(problem.model)
    names, start = zip(*model.named_parameters(), strict=True)
    inner = torchopt.sgd(lr=problem.lr)

    def loss_at(phi: tuple[Tensor, ...], batch: qs.Batch) -> Tensor:
        named = dict(zip(names, phi, strict=True))
        return problem.loss(torch.func.functional_call(model, named, (batch.x,)), batch.y)

    def task_loss(episode: qs.Episode) -> Tensor:
        phi, state = start, inner.init(start)
        for _ in range(problem.steps):
            updates, state = inner.update(torch.func.grad(loss_at)(phi, episode.support), state, inplace=False)
            phi = torchopt.apply_updates(phi, updates, inplace=False)
        return loss_at(phi, episode.query)

    return lambda: _differentiate(torch.func.vmap(task_loss)(problem.episodes).mean(), start)


def _differentiate(loss: Tensor, parameters: Sequence[Tensor]) -> Result:
    return loss.detach(), list(torch.autograd.grad(loss, parameters))


CONTESTANTS: dict[str, dict[str, Way]] = {
    "quickstudy": {engine: partial(quickstudy, engine=engine) for engine in ("vmap", "threads", "loop")},
    "quickstudy-loop": {"loop": partial(quickstudy, engine="loop")},
    "higher": {"patched once": higher_patched_once},
    "torchopt": {"MetaSGD": torchopt_meta_sgd},
    "torchopt under vmap": {"vmap": torchopt_vmap},  # its functional API, mapped over tasks by torch
}
PEERS = {"higher": "higher", "torchopt": "torchopt", "torchopt under vmap": "torchopt"}  # contestant -> package
