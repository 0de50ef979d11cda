"""A computation as the operations of torch that it comes down to, which can be run again without what led to them.

Modules, learners, hooks, autograd and transforms cost more than the arithmetic of a small network. `record` runs a
function once, writes down each operation that depends on its inputs, derivatives included, and makes a program of them:

    program = record(function, inputs)      program(*inputs) == function(*inputs), for any inputs of these shapes

What depends on no input becomes a constant of the program. What the operations alone do not tell cannot be recorded and
is refused: decisions on a tensor's values, draws at random, writes into a part of a tensor.
"""

from __future__ import annotations

import functools
import operator
import types
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from quickstudy.rewriting import CHECK, VIEWS, Call, Like, finished, rewritten

Program = Callable[..., list[Tensor]]

aten = torch.ops.aten
# Results that depend on an input's shape alone: small ones become constants.
FILLED = {aten.ones_like, aten.zeros_like, aten.full_like, aten.new_zeros, aten.new_ones, aten.new_full}
SMALL = 2**16  # bytes
# Ways to read a tensor's values that torch does not see as operations.
READS = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__}


def record(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> Program:
    """The program of function(*inputs), which is run once for it. Derivatives of the result are not recorded.

    Raises RuntimeError, with the reason, for what cannot be recorded.
    """
    recorder = _Recorder()
    given = [recorder.input(tensor.detach()) for tensor in inputs]
    with _without_onednn(), _Unread(recorder), recorder:
        found = list(function(*given))
    return recorder.program(found)


@contextmanager
def _without_onednn() -> Iterator[None]:
    """Its recurrent layers have a workspace that cannot be handed from one operation to another."""
    before, torch.backends.mkldnn.enabled = torch.backends.mkldnn.enabled, False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


def over_tasks(program: Program, inputs: Sequence[Tensor], shared: int) -> Program:
    """The program of all tasks at once, whose results are the means over them, from that of one task.

    inputs   the first `shared` are those of one task, which all share; the others have a leading task axis

    Operations on shared inputs alone are done once. The derivatives are in the program already, so that `vmap` has to
    know no more than how each operation is done for several tasks.
    """
    axes = [None] * shared + [0] * (len(inputs) - shared)

    def means(*inputs: Tensor) -> list[Tensor]:
        mapped = torch.func.vmap(lambda *one: tuple(program(*one)), in_dims=tuple(axes))
        return [each.mean(0) for each in mapped(*inputs)]

    with torch.no_grad():
        return record(means, inputs)


class _Unread(TorchFunctionMode):
    """Refuses what reads values behind torch's back."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS and args[0] in self.recorder.nodes:
            raise RuntimeError("it reads a tensor's values in Python")
        return func(*args, **(kwargs or {}))


class _Recorder(TorchDispatchMode):
    """Runs every operation, and writes those down that depend on an input."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self.nodes = WeakTensorKeyDictionary()  # of the tensors that depend on an input
        self.known: dict[Any, fx.Node] = {}  # what is computed already
        self.kept = WeakTensorKeyDictionary()  # of constants: the version of the tensor, and its node
        self.made: dict[int, list[TensorWeakRef]] = defaultdict(list)  # memory taken on the way -> tensors on it
        self.stale = WeakTensorKeyDictionary()  # tensors of which a part was written to through another one

    def input(self, tensor: Tensor) -> Tensor:
        node = self.graph.placeholder(f"input{len(self.nodes)}")
        node.meta["like"] = _like(tensor)
        self.nodes[tensor] = node
        return tensor

    def program(self, outputs: list[Tensor]) -> Program:
        self.graph.output([self._own(self._node(tensor)) for tensor in outputs])
        finished(self.graph)
        code = self.graph.python_code("self")
        scope = dict(code.globals)
        exec(code.src, scope)  # source that torch wrote of the operations above
        return functools.partial(scope["forward"], types.SimpleNamespace(**self.constants))

    def _own(self, node: fx.Node) -> fx.Node:
        """A result in memory of its own: whoever asked for it may write to it, to no input or constant."""
        fresh = node.op == "call_function" and node.target not in VIEWS
        return node if fresh else self.graph.call_function(aten.clone.default, (node,))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise RuntimeError(f"it draws at random ({func}), and would draw other numbers")
        tensors = list(_tensors((args, kwargs)))
        if any(tensor in self.stale for tensor in tensors):
            raise RuntimeError("it writes into a part of a tensor that it reads again")
        depends = any(tensor in self.nodes for tensor in tensors)
        if func._schema.is_mutable:
            return self._written(func, args, kwargs, depends)
        if depends and _reads_values(func, tensors[1:]):
            raise RuntimeError(f"it decides on a tensor's values ({func})")
        found = func(*args, **kwargs)
        if depends and not _tells_shapes(func, found):
            self._keep(found, self._emit(func, args, kwargs, found))
        self._see(found, tensors)
        return found

    # --- operations ---

    def _emit(self, func: Any, args: Any, kwargs: Any, found: Any) -> fx.Node:
        call = Call(func, _changed(args, self._node), _changed(kwargs, self._node), _like(found))
        return self._once(rewritten(call))

    def _once(self, call: Call | fx.Node) -> fx.Node:
        """The node of a call: the one there is, if the same was called before."""
        if isinstance(call, fx.Node):
            return call
        key = (call.target, _frozen(call.args), _frozen(call.kwargs))
        if key not in self.known:
            node = self.known[key] = self.graph.call_function(call.target, tuple(call.args), dict(call.kwargs))
            node.meta["like"] = call.like
        return self.known[key]

    def _keep(self, found: Any, node: fx.Node) -> None:
        if isinstance(found, Tensor):
            self.nodes[found] = node
            return
        if found is None and node.target is not CHECK:
            raise RuntimeError(f"it does something that has no result ({node.target})")
        for i, tensor in enumerate(found or ()):
            if isinstance(tensor, Tensor):
                self.nodes[tensor] = self._once(Call(operator.getitem, (node, i), {}, _like(tensor)))

    def _node(self, tensor: Tensor) -> fx.Node:
        return self.nodes[tensor] if tensor in self.nodes else self._constant(tensor)

    def _constant(self, tensor: Tensor) -> fx.Node:
        """What depends on no input: a tensor from outside itself, of one that was made on the way a copy."""
        kept = self.kept.get(tensor)
        if kept is not None and kept[0] == tensor._version:
            return kept[1]
        made = bool(self._sharing(tensor))
        value = tensor.detach().clone() if made else tensor.detach()
        plain = _plain(value) if made else None
        key = ("constant", plain, value.shape, value.dtype, value.device)
        node = self.known.get(key) if plain is not None else None
        if node is None:
            name = f"c{len(self.constants)}"
            self.constants[name] = value
            node = self.known[key if plain is not None else name] = self.graph.get_attr(name)
            node.meta |= {"like": _like(value), "plain": plain}
        self.kept[tensor] = (tensor._version, node)
        return node

    # --- memory ---

    def _written(self, func: Any, args: Any, kwargs: Any, depends: bool) -> Any:
        """An operation that writes to its first argument, as one that makes a new tensor in its place.

        Others that share its memory would be other tensors from now on: they must not be read again.
        """
        target, twin = args[0] if args else None, _without_writing(func)
        if twin is None or not isinstance(target, Tensor) or not (sharing := self._sharing(target)):
            raise RuntimeError(f"it writes to a tensor ({func})")
        if not (depends or any(one in self.nodes for one in sharing)):
            return func(*args, **kwargs)
        before = _changed(args, self._node), _changed(kwargs, self._node)
        if torch.Tag.inplace_view not in func.tags:
            self.stale.update({one: True for one in sharing if one is not target and _overlap(one, target)})
        found = func(*args, **kwargs)
        self.nodes[target] = self._once(rewritten(Call(twin, *before, _like(target))))
        return found

    def _see(self, found: Any, inputs: list[Tensor]) -> None:
        outside = {_memory(one) for one in inputs if not self._sharing(one)}
        for tensor in _tensors(found):
            if (place := _memory(tensor)) not in outside:
                self.made[place].append(TensorWeakRef(tensor))

    def _sharing(self, tensor: Tensor) -> list[Tensor]:
        """The tensors made on the way in this one's memory, itself among them; none where that is from outside."""
        living = [ref() for ref in self.made.get(_memory(tensor), ())]
        return [one for one in living if one is not None]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tells_shapes(func: Any, found: Any) -> bool:
    """Whether the result depends on the shapes of inputs alone, and is small enough to be a constant."""
    if isinstance(found, Tensor):
        return found.is_meta or (func.overloadpacket in FILLED and found.nbytes <= SMALL)
    return isinstance(found, (bool, int))


def _reads_values(func: Any, indices: Sequence[Tensor]) -> bool:
    """Whether the shape of the result, or what is done next, depends on values: masks, not indices."""
    if func is aten.index.Tensor and all(t.dtype not in (torch.bool, torch.uint8) for t in indices):
        return False
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))


def _without_writing(func: Any) -> Any:
    """The operation that makes a new tensor of what `func` writes to its first argument; None where there is none."""
    if func is aten.transpose_.default:
        return aten.transpose.int
    name, writes = (
        func._schema.name,
        [a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments],
    )
    packet = getattr(aten, name.removeprefix("aten::").removesuffix("_"), None) if name.endswith("_") else None
    return getattr(packet, func._overloadname, None) if writes and writes[0] and not any(writes[1:]) else None


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors on the same memory may have an element in common; such as chunks of a third one do not."""
    if one.shape != other.shape or one.stride() != other.stride():
        return True
    steps = sorted(zip(one.stride(), one.shape, strict=True), reverse=True)
    return _reached(int(one.storage_offset()) - int(other.storage_offset()), steps)


def _reached(distance: int, steps: list[tuple[int, int]]) -> bool:
    """Whether sum_i k_i * stride_i = distance for some |k_i| < size_i; `steps`: (stride, size), the widest first."""
    if not steps or not steps[0][0]:
        return distance == 0
    (stride, size), *rest = steps
    nearest = distance // stride
    return any(-size < k < size and _reached(distance - k * stride, rest) for k in (nearest, nearest + 1))


def _tensors(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for each in tree:
            yield from _tensors(each)
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))


def _changed(tree: Any, change: Callable[[Tensor], Any]) -> Any:
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, (list, tuple)):
        return type(tree)(_changed(each, change) for each in tree)
    return {name: _changed(each, change) for name, each in tree.items()} if isinstance(tree, dict) else tree


def _frozen(tree: Any) -> Any:
    """The same, such that it can be looked up; 1, 1.0 and True are not the same."""
    if isinstance(tree, (list, tuple)):
        return tuple(map(_frozen, tree))
    if isinstance(tree, dict):
        return tuple((name, _frozen(each)) for name, each in tree.items())
    return (type(tree), tree) if isinstance(tree, (bool, int, float)) else tree


def _like(found: Any) -> Like | None:
    return Like(tuple(found.shape), found.dtype, found.is_contiguous()) if isinstance(found, Tensor) else None


def _plain(value: Tensor) -> float | None:
    """The number that all entries of a small tensor are, if they are all the same."""
    if not value.is_floating_point() or value.nbytes > SMALL or not value.numel():
        return None
    first = value.reshape(-1)[0]
    return float(first) if bool((value == first).all()) else None
