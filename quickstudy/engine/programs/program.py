"""Meta-gradients as programs: recorded once for a learner and given task shapes, then replayed or compiled.

One task's meta-gradient is recorded with ordinary autograd, where torch's derivatives are right and ours are cheap.
The recorded operations are then mapped over tasks. "replay" calls torch for each operation. "compile" first has
torch's inductor fuse them into a few loops of machine code, which takes from ten seconds to minutes. "replay-threads"
runs the program of one task on each thread.
"""

from __future__ import annotations

import dataclasses
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from quickstudy.engine.engines import Engine
from quickstudy.engine.programs.recording import Program, over_tasks, record
from quickstudy.episodes import unstack
from quickstudy.errors import first_line
from quickstudy.learner import Batch, Episode, Learner, Theta, networks
from quickstudy.nn.model import prepare

MetaGradient = Callable[[Theta, Episode], tuple[Tensor, Theta]]  # theta, episodes -> loss, its gradient
OfTask = Callable[[Learner, Theta, Episode], tuple[Tensor, Theta]]
_known: weakref.WeakKeyDictionary[Learner, dict[Any, tuple[list[Any], MetaGradient]]] = weakref.WeakKeyDictionary()


def program_of(
    learner: Learner, theta: Theta, episodes: Episode, of_task: OfTask, engine: Engine, key: Any = None
) -> MetaGradient:
    """The function (theta, episodes) -> (meta-loss, meta-gradient) for these shapes, built once and cached.

    It is rebuilt when something other than theta and the tasks has changed: a field of the learner, a module's mode,
    a frozen weight or a buffer, or torch's defaults. These changes go unnoticed: numbers inside functions, attributes
    of modules, writes through `.data`.

    of_task    (learner, theta, one episode) -> its loss and gradient, with ordinary autograd
    engine     a recorded one: for the mean over episodes with a task axis where it runs them together, else for one
    key        tells different `of_task` functions apart in the cache

    Raises RuntimeError, with the reason, where the computation cannot be recorded or compiled.
    """
    known, (leaves, structure) = _known.setdefault(learner, {}), _flat(theta, episodes)
    shapes = tuple((leaf.shape, leaf.dtype, leaf.device) for leaf in leaves)
    # Compiled code is specific to one memory layout and one number of threads.
    layout = (torch.get_num_threads(), *(leaf.stride() for leaf in leaves)) if engine.compiled else None
    wanted = (engine, key, tuple(theta), structure, shapes, layout)
    state = [torch.get_default_dtype(), torch.is_autocast_enabled(leaves[0].device.type), *_state(learner)]
    before, program = known.get(wanted, (None, None))
    if program is None or before is None or not _unchanged(before, state):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns about its own internals
                program = _made(learner, theta, episodes, of_task, engine)
        except Exception as error:  # the compiler and a learner's own code can raise any exception
            raise RuntimeError(first_line(error)) from error
        known[wanted] = state, program
    return program


def _state(value: Any) -> Iterator[Any]:
    """Everything that a learner's recording assumes to stay the same: numbers, and weak references to objects."""
    if isinstance(value, nn.Module):
        for module in value.modules():
            yield from (weakref.ref(module), module.training)
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                yield from _state(tensor)
    elif isinstance(value, Tensor):
        yield from (weakref.ref(value), value.requires_grad)
        if not value.requires_grad:  # otherwise it is only the initial value of theta, which is an input
            yield from (value.data_ptr(), 0 if value.is_inference() else value._version)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _state(getattr(value, field.name))
    elif isinstance(value, (list, tuple, dict)):
        yield len(value)
        for each in value.items() if isinstance(value, dict) else value:
            yield from _state(each)
    else:
        try:
            yield weakref.ref(value)
        except TypeError:  # numbers have no weak references
            yield value


def _unchanged(before: list[Any], now: list[Any]) -> bool:
    return len(before) == len(now) and all(
        a is b or (type(a) is type(b) and isinstance(a, (int, float, str)) and a == b)
        for a, b in zip(before, now, strict=True)
    )


def _made(learner: Learner, theta: Theta, episodes: Episode, of_task: OfTask, engine: Engine) -> MetaGradient:
    for model in networks(learner).values():
        prepare(model)
    names = list(theta)
    one, structure = _flat(theta, unstack(episodes)[0] if engine.together else episodes)

    def of_leaves(*leaves: Tensor) -> list[Tensor]:
        theta = dict(zip(names, leaves, strict=False))
        loss, gradient = of_task(learner, theta, _episode(leaves[len(names) :], structure))
        return [loss, *(gradient[name] for name in names)]

    program = record(of_leaves, one)
    if engine.together:
        leaves = [leaf.detach() for leaf in _flat(theta, episodes)[0]]
        program = over_tasks(program, leaves, shared=len(names))
        program = _compiled(program, leaves) if engine.compiled else program
        program = _as_one_graph(program, leaves) if all(leaf.is_cuda for leaf in leaves) else program

    def compute(theta: Theta, episodes: Episode) -> tuple[Tensor, Theta]:
        with torch.no_grad():
            loss, *gradients = program(*_flat(theta, episodes)[0])
        return loss, dict(zip(names, gradients, strict=True))

    return compute


def _flat(theta: Theta, episodes: Episode) -> tuple[list[Tensor], Any]:
    """All tensors that a program reads, and how the episodes are built from theirs."""
    parts = (*episodes.support, *episodes.query)
    if all(isinstance(part, Tensor) for part in parts):  # the most frequent case; flattening takes ten times as long
        return [*theta.values(), *parts], None
    leaves, structure = pytree.tree_flatten(episodes)
    return [*theta.values(), *leaves], structure


def _episode(leaves: Sequence[Tensor], structure: Any) -> Episode:
    """The inverse of `_flat` for the episodes' tensors."""
    if structure is not None:
        return pytree.tree_unflatten(leaves, structure)
    xs, ys, xq, yq = leaves
    return Episode(Batch(xs, ys), Batch(xq, yq))


def _compiled(program: Program, leaves: Sequence[Tensor]) -> Program:
    """The same program compiled to machine code."""
    from torch._inductor.compile_fx import compile_fx_inner  # takes a second to import
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx

    traced = make_fx(
        lambda *leaves: tuple(program(*leaves)),
        select_decomp_table(),
        tracing_mode="fake",
        _allow_non_fake_inputs=True,
    )(*leaves)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    run: Any = compile_fx_inner(traced, leaves)
    return lambda *leaves: run(list(leaves))  # compiled code empties its argument list


@torch.no_grad()
def _as_one_graph(program: Program, leaves: Sequence[Tensor]) -> Program:
    """The program as one CUDA graph, which launches its kernels together; unchanged where capture fails."""
    held, side = [leaf.clone() for leaf in leaves], torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # CUDA requires warm-up runs on a side stream before capture
        for _ in range(3):
            program(*held)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            results = program(*held)
    except RuntimeError:
        return program

    def replay(*leaves: Tensor, holds: Any = program) -> list[Tensor]:  # keeps the constants that the graph reads
        for place, leaf in zip(held, leaves, strict=True):
            place.copy_(leaf)
        graph.replay()
        return [tensor.clone() for tensor in results]  # the next replay overwrites this memory

    return replay
