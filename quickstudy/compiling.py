"""The meta-gradient of a batch of tasks as one compiled program.

What a small network's meta-gradient costs is the start of its operations, some thousand of them. They are written down
once, by running the meta-gradient under `vmap` with tracing tensors, derivatives included, and torch's inductor turns
them into few loops of machine code. That takes a while (`Compiled` in the engine's report), and holds for tensors of
these shapes only.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from quickstudy.errors import first_line
from quickstudy.learner import Episode, Learner, Theta
from quickstudy.model import prepare

MetaGradient = Callable[[Theta, Episode], tuple[Tensor, Theta]]
Program = Callable[[list[Tensor]], Sequence[Tensor]]  # it empties the list that it is given
_known: weakref.WeakKeyDictionary[Learner, dict[Any, MetaGradient]] = weakref.WeakKeyDictionary()


def compiled(
    learner: Learner, theta: Theta, episodes: Episode, function: Callable[..., Any], precision: str = "float32"
) -> MetaGradient:
    """(theta, episodes) -> function(learner, theta, episodes, precision) for these shapes, compiled once for each.

    Raises RuntimeError, with the reason, for what cannot be compiled: draws at random, decisions that depend on a
    tensor's values, a machine without a compiler.
    """
    known = _known.setdefault(learner, {})
    leaves, spec = pytree.tree_flatten((theta, episodes))
    shapes = tuple((leaf.shape, leaf.dtype, leaf.device) for leaf in leaves)
    key = (spec, shapes, torch.get_num_threads(), precision)
    if key not in known:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch, about itself
                known[key] = _compile(learner, leaves, spec, functools.partial(function, precision=precision))
        except Exception as error:  # the tracer and the compiler raise of every kind
            raise RuntimeError(first_line(error)) from error
    return known[key]


def _compile(learner: Learner, leaves: list[Tensor], spec: Any, function: Callable[..., Any]) -> MetaGradient:
    from torch._inductor.compile_fx import compile_fx_inner  # takes a second to import

    for field in dataclasses.fields(learner):  # type: ignore[arg-type]
        if isinstance(model := getattr(learner, field.name), nn.Module):
            prepare(model)
    program, out = _traced(learner, leaves, spec, function)
    run: Program = compile_fx_inner(program, leaves)  # type: ignore[assignment]
    run = _as_one_graph(run, leaves) if all(leaf.is_cuda for leaf in leaves) else run

    def compute(theta: Theta, episodes: Episode) -> tuple[Tensor, Theta]:
        with torch.no_grad():
            found = run([leaf.detach() for leaf in pytree.tree_leaves((theta, episodes))])
        return pytree.tree_unflatten(list(found), out)

    return compute


@torch.no_grad()
def _as_one_graph(run: Program, leaves: list[Tensor]) -> Program:
    """The program as one CUDA graph, whose kernels are started together; as it is where that cannot be recorded."""
    held, side = [leaf.detach().clone() for leaf in leaves], torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what is recorded must have run before, and elsewhere than on the main stream
        for _ in range(3):
            run(list(held))
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            found = run(list(held))
    except RuntimeError:
        return run

    def replay(leaves: list[Tensor]) -> list[Tensor]:
        for place, leaf in zip(held, leaves, strict=True):
            place.copy_(leaf)
        graph.replay()
        return [tensor.clone() for tensor in found]  # the next replay writes to the same memory

    return replay


def _traced(learner: Learner, leaves: list[Tensor], spec: Any, function: Callable[..., Any]) -> tuple[Any, Any]:
    """The operations from flat inputs to flat outputs, and how these are put together."""
    from torch._inductor.decomposition import select_decomp_table
    from torch.func import functionalize
    from torch.fx.experimental.proxy_tensor import make_fx

    out: list[Any] = []

    def flat(*leaves: Tensor) -> tuple[Tensor, ...]:
        theta, episodes = pytree.tree_unflatten(list(leaves), spec)
        found, how = pytree.tree_flatten(function(learner, theta, episodes))
        out[:] = [how]
        return tuple(found)

    # Tensors without values, so that a decision on a value is an error and not taken once for all.
    inputs, settings = [leaf.detach() for leaf in leaves], {"tracing_mode": "fake", "_allow_non_fake_inputs": True}
    program = make_fx(flat, **settings)(*inputs)
    # The compiler takes no operation that writes to its inputs: a second trace puts others in their place.
    program = make_fx(functionalize(program, remove="mutations_and_views"), select_decomp_table(), **settings)(*inputs)
    program.graph.eliminate_dead_code()
    for node in program.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise RuntimeError(f"it draws at random ({node.target}), and would draw other numbers")
    program.recompile()
    return program, out[0]
