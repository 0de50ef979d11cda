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

from quickstudy.engine.programs.recording import Program, over_tasks, record
from quickstudy.episodes import unstack
from quickstudy.errors import first_line
from quickstudy.learner import Batch, Episode, Learner, Theta
from quickstudy.nn.model import prepare

MetaGradient = Callable[[Theta, Episode], tuple[Tensor, Theta]]  # theta, episodes -> loss, its gradient
OfTask = Callable[[Learner, Theta, Episode], tuple[Tensor, Theta]]
_known: weakref.WeakKeyDictionary[Learner, dict[Any, tuple[list[Any], MetaGradient]]] = weakref.WeakKeyDictionary()


def program_of(
    learner: Learner, theta: Theta, episodes: Episode, of_task: OfTask, engine: str, key: Any = None
) -> MetaGradient:
    """The function (theta, episodes) -> (meta-loss, meta-gradient) for these shapes, built once and cached.

    It is rebuilt when something other than theta and the tasks has changed: a field of the learner, a module's mode,
    a frozen weight or a buffer, or torch's defaults. These changes go unnoticed: numbers inside functions, attributes
    of modules, writes through `.data`.

    of_task    (learner, theta, one episode) -> its loss and gradient, with ordinary autograd
    engine     "replay" and "compile": the mean over episodes with a task axis; "replay-threads": one episode
    key        tells different `of_task` functions apart in the cache

    Raises RuntimeError, with the reason, where the computation cannot be recorded or compiled.
    """
    known, leaves = _known.setdefault(learner, {}), _leaves(theta, episodes)
    shapes = tuple((leaf.shape, leaf.dtype, leaf.device) for leaf in leaves)
    # Compiled code is specific to one memory layout and one number of threads.
    layout = (torch.get_num_threads(), *(leaf.stride() for leaf in leaves)) if engine == "compile" else None
    wanted = (engine, key, tuple(theta), shapes, layout)
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


def _made(learner: Learner, theta: Theta, episodes: Episode, of_task: OfTask, engine: str) -> MetaGradient:
    for field in dataclasses.fields(learner):  # type: ignore[arg-type]
        if isinstance(model := getattr(learner, field.name), nn.Module):
            prepare(model)
    together, names = engine != "replay-threads", list(theta)

    def flat(*leaves: Tensor) -> list[Tensor]:
        theta, (xs, ys, xq, yq) = dict(zip(names, leaves, strict=False)), leaves[len(names) :]
        loss, slope = of_task(learner, theta, Episode(Batch(xs, ys), Batch(xq, yq)))
        return [loss, *(slope[name] for name in names)]

    program = record(flat, _leaves(theta, unstack(episodes)[0] if together else episodes))
    if together:
        leaves = [leaf.detach() for leaf in _leaves(theta, episodes)]
        program = over_tasks(program, leaves, shared=len(names))
        program = _compiled(program, leaves) if engine == "compile" else program
        program = _as_one_graph(program, leaves) if all(leaf.is_cuda for leaf in leaves) else program

    def compute(theta: Theta, episodes: Episode) -> tuple[Tensor, Theta]:
        with torch.no_grad():
            loss, *slopes = program(*_leaves(theta, episodes))
        return loss, dict(zip(names, slopes, strict=True))

    return compute


def _leaves(theta: Theta, episodes: Episode) -> list[Tensor]:
    return [*theta.values(), *episodes.support, *episodes.query]


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
            found = program(*held)
    except RuntimeError:
        return program

    def replay(*leaves: Tensor, holds: Any = program) -> list[Tensor]:  # keeps the constants that the graph reads
        for place, leaf in zip(held, leaves, strict=True):
            place.copy_(leaf)
        graph.replay()
        return [tensor.clone() for tensor in found]  # the next replay overwrites this memory

    return replay
