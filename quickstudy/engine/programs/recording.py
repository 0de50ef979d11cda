"""Records a computation as a list of torch operations that can be run again without the Python code behind them.

Modules, learners, hooks, autograd and transforms cost more than the arithmetic of a small network. `record` runs a
function once, notes each operation that depends on its inputs, including derivatives, and builds a program from them:

    program = record(function, inputs)      program(*inputs) == function(*inputs), for any inputs of these shapes

Whatever depends on no input becomes a constant of the program. A list of operations cannot express everything. These
are refused: decisions based on a tensor's values, random draws, and writes into a part of a tensor that is read again.
"""

from __future__ import annotations

import gc
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import TensorWeakRef

from quickstudy.engine.programs.operations import CONSTANT, INPUT, Like, Operation, as_function, inside
from quickstudy.engine.programs.rewriting import CHECK, VIEWS, finished, rewritten

Program = Callable[..., list[Tensor]]

aten = torch.ops.aten
# The results depend only on an input's shape; small ones become constants.
FILLED = {aten.ones_like, aten.zeros_like, aten.full_like, aten.new_zeros, aten.new_ones, aten.new_full}
SMALL = 2**16  # bytes
STRIDED = {aten.as_strided, aten.as_strided_copy, aten.as_strided_scatter}
# Calls that read values without an operation that torch sees: those of the tensor itself (READS), and those of tensors
# among the other arguments (BESIDE).
READS = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__}
BESIDE = {torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor, torch.tensor_split, Tensor.tensor_split}


def record(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> Program:
    """The program of function(*inputs), from running the function once.

    `function` returns a sequence of tensors; the program returns them as a list. It holds for inputs with the shapes,
    dtypes and devices of these. Derivatives of the result are not recorded.

    Raises RuntimeError, with the reason, where the function cannot be recorded.
    """
    try:
        return _recorded(function, inputs)
    except _OneDNNRecurrent:
        before, torch.backends.mkldnn.enabled = torch.backends.mkldnn.enabled, False
        try:
            return _recorded(function, inputs)
        finally:
            torch.backends.mkldnn.enabled = before


class _OneDNNRecurrent(RuntimeError):
    """oneDNN's recurrent layers use a workspace that cannot be passed from one operation to another."""


def _recorded(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> Program:
    recorder = _Recorder()
    given = [recorder.input(tensor.detach()) for tensor in inputs]
    with _without_collector():
        with _Unread(recorder), recorder:
            found = list(function(*given))
        return recorder.program(len(given), found)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Switch off Python's cyclic garbage collector, which would scan the growing recording again and again."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def over_tasks(program: Program, inputs: Sequence[Tensor], shared: int) -> Program:
    """Turn the program of one task into a program of all tasks at once, which returns the means over tasks.

    inputs   the first `shared` are common to all tasks and have no task axis; the others have a leading task axis

    Operations that depend only on shared inputs run once. The derivatives are already operations of the program, so
    `vmap` only needs a batching rule for each operation.

    Raises RuntimeError, with the reason, where the program cannot be mapped or recorded.
    """
    axes = [None] * shared + [0] * (len(inputs) - shared)

    def means(*inputs: Tensor) -> list[Tensor]:
        mapped = torch.func.vmap(lambda *one: tuple(program(*one)), in_dims=tuple(axes))
        return [each.mean(0) for each in mapped(*inputs)]

    with torch.no_grad():
        return record(means, inputs)


class _Unread(TorchFunctionMode):
    """Refuses calls that read or replace a tensor's values without an operation that torch sees."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == Tensor.data.__set__:  # type: ignore[attr-defined]
            raise RuntimeError("it exchanges a tensor's values behind torch's back (.data = ...)")
        if func in READS or func in BESIDE:
            beside = func in BESIDE and args and isinstance(args[0], Tensor)
            read = inside(args[1:] if beside else args, Tensor) + inside(kwargs.values(), Tensor)
            if any(self.recorder.source(tensor) is not None for tensor in read):
                raise RuntimeError("it reads a tensor's values in Python")
        return func(*args, **kwargs)


class _Recorder(TorchDispatchMode):
    """Runs every operation and records those that depend on an input."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.sources: dict[int, tuple[TensorWeakRef, Operation]] = {}  # id of a tensor -> the operation it comes from
        self.results: dict[Operation, list[TensorWeakRef]] = defaultdict(list)  # operation -> its results
        self.known: dict[Any, Operation] = {}  # target and arguments -> the operation already recorded for them
        self.kept: dict[int, tuple[TensorWeakRef, int, Operation]] = {}  # id of a constant -> its version, operation
        self.made: dict[int, list[TensorWeakRef]] = {}  # memory allocated while recording -> the tensors in it
        self.depending: dict[int, StorageWeakRef] = {}  # memory of input-dependent tensors; keeps the address reserved
        self.room = 64  # the size of `depending` at which its expired entries are dropped
        self.stale: dict[int, TensorWeakRef] = {}  # tensors changed by a write through another tensor

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False, because nothing is compiled inside. To check that, torch would import its compiler (45 MB)."""
        return False

    def input(self, tensor: Tensor) -> Tensor:
        self.operations.append(Operation(INPUT, like=_like(tensor)))
        self._is(tensor, self.operations[-1])
        return tensor

    def program(self, inputs: int, outputs: list[Tensor]) -> Program:
        self._depend(outputs)
        found: list[Operation] = []
        for tensor in outputs:
            found.append(self._own(self._operand(tensor), found))
        return as_function(self.operations[:inputs], finished(self.operations, found), found)

    def _own(self, one: Operation, others: Sequence[Operation]) -> Operation:
        """The result in its own memory, so that the caller may write to it."""
        if not (one in others or one.target in (INPUT, CONSTANT) or _is_view(one)):
            return one
        self.operations.append(Operation(aten.clone.default, (one,), like=one.like))
        return self.operations[-1]

    def source(self, tensor: Tensor) -> Operation | None:
        """The operation that produced the tensor; None where it depends on no input."""
        ref, one = self.sources.get(id(tensor), (None, None))
        return one if ref is not None and ref() is tensor else None

    def _depend(self, tensors: list[Tensor]) -> bool:
        """Whether any tensor depends on an input. Refuses tensors whose current contents are unknown."""
        if self.stale and any(id(t) in self.stale and self.stale[id(t)]() is t for t in tensors):
            raise RuntimeError("it writes into a part of a tensor that it reads again")
        others = [tensor for tensor in tensors if self.source(tensor) is None]
        if any(_memory(tensor) in self.depending for tensor in others):
            raise RuntimeError("it gives a tensor another's memory behind torch's back, as nn.Parameter(tensor) does")
        return len(others) < len(tensors)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise RuntimeError(f"it draws at random ({func}), and would draw other numbers")
        if func is aten.mkldnn_rnn_layer.default:
            raise _OneDNNRecurrent
        tensors = inside(args, Tensor) + (inside(kwargs.values(), Tensor) if kwargs else [])
        depends = self._depend(tensors)
        if func._schema.is_mutable:
            return self._written(func, args, kwargs, depends)
        if depends and _reads_values(func, tensors[1:]):
            raise RuntimeError(f"it decides on a tensor's values ({func})")
        if depends and func.overloadpacket in STRIDED:
            raise RuntimeError(f"it counts on a layout in memory that may be another one next time ({func})")
        found = func(*args, **kwargs)
        if depends and not _tells_shapes(func, found):
            self._keep(found, self._emit(func, args, kwargs, found))
        self._see(found, tensors)
        return found

    # --- operations ---

    def _emit(self, func: Any, args: Any, kwargs: Any, found: Any) -> Operation:
        return self._once(Operation(func, *self._operands(args, kwargs), like=_like(found)))

    def _operands(self, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        named = dict(zip(kwargs, _changed(kwargs.values(), self._operand), strict=True)) if kwargs else {}
        return _changed(args, self._operand), named

    def _once(self, one: Operation) -> Operation:
        """The simplified operation, or the equal one recorded before while a result of it is still in memory.

        An adjoint may free tensors to save memory and compute them again. The program then computes them again too.
        """
        one = rewritten(one)
        if one in self.results or one.target in (INPUT, CONSTANT):
            return one
        key = (one.target, _frozen(one.args), *(_frozen(one.kwargs.items()) if one.kwargs else ()))
        before = self.known.get(key)
        if before is not None and (one.target in VIEWS or any(ref() is not None for ref in self.results[before])):
            return before
        self.known[key] = one
        self.results[one] = []
        self.operations.append(one)
        return one

    def _is(self, tensor: Tensor, *sources: Operation) -> None:
        """Note that the tensor is the result of the first source, and one of several results of the others."""
        ref, storage = TensorWeakRef(tensor), tensor.untyped_storage()
        self.sources[id(tensor)] = ref, sources[0]
        for one in sources:
            self.results[one].append(ref)
        if storage._cdata not in self.depending:
            if len(self.depending) > self.room:  # entries of freed tensors would fragment the memory
                self.depending = {place: ref for place, ref in self.depending.items() if not ref.expired()}
                self.room = 2 * len(self.depending) + 64
            self.depending[storage._cdata] = StorageWeakRef(storage)

    def _keep(self, found: Any, one: Operation) -> None:
        if isinstance(found, Tensor):
            self._is(found, one)
            return
        if found is None and one.target is not CHECK:
            raise RuntimeError(f"it does something that has no result ({one.target})")
        for i, tensor in enumerate(found or ()):
            if isinstance(tensor, Tensor):
                self._is(tensor, self._once(Operation(operator.getitem, (one, i), like=_like(tensor))), one)

    def _operand(self, tensor: Tensor) -> Operation:
        return self.source(tensor) or self._constant(tensor)

    def _constant(self, tensor: Tensor) -> Operation:
        """The constant for a tensor that depends on no input.

        It holds the tensor itself if that comes from outside, and a copy if it was made while recording.
        """
        ref, version, one = self.kept.get(id(tensor), (None, None, None))
        if one is not None and ref is not None and ref() is tensor and version == tensor._version:
            return one
        made = _memory(tensor) in self.made
        value = tensor.detach().clone() if made else tensor.detach()
        plain = _plain(value) if made else None
        key = (CONSTANT, str(plain), value.shape, value.dtype, value.device)
        one = self.known.get(key) if plain is not None else None
        if one is None:
            one = Operation(CONSTANT, (value,), like=_like(value))
            one.plain = plain
            self.operations.append(one)
            self.known[key if plain is not None else one] = one
        self.kept[id(tensor)] = TensorWeakRef(tensor), tensor._version, one
        return one

    # --- memory ---

    def _written(self, func: Any, args: Any, kwargs: Any, depends: bool) -> Any:
        """Record an operation that writes to its first argument as one that makes a new tensor instead.

        In the program, other tensors in the same memory do not see the write, so they must not be read again.
        """
        target, twin = args[0] if args else None, _without_writing(func)
        if twin is None or not isinstance(target, Tensor) or not (sharing := self._sharing(target)):
            raise RuntimeError(f"it writes to a tensor ({func})")
        if not (depends or any(self.source(one) is not None for one in sharing)):
            for one in sharing:
                self.kept.pop(id(one), None)
            return func(*args, **kwargs)
        if twin(*args, **kwargs).dtype != target.dtype:
            raise RuntimeError(f"it writes numbers of another type into a tensor ({func})")
        given = self._operands(args, kwargs)
        if torch.Tag.inplace_view not in func.tags:
            others = [one for one in sharing if one is not target and _overlap(one, target)]
            self.stale |= {id(one): TensorWeakRef(one) for one in others}
        found = func(*args, **kwargs)
        self._is(target, self._once(Operation(twin, *given, like=_like(target))))
        return found

    def _see(self, found: Any, inputs: list[Tensor]) -> None:
        outside = {place for place in map(_memory, inputs) if place not in self.made}
        for tensor in _tensors(found):
            if (place := _memory(tensor)) not in outside:
                self.made.setdefault(place, []).append(TensorWeakRef(tensor))

    def _sharing(self, tensor: Tensor) -> list[Tensor]:
        """The tensors made while recording in this one's memory, including itself; none if it comes from outside."""
        place = _memory(tensor)
        self.made[place] = refs = [ref for ref in self.made.get(place, ()) if ref() is not None]
        if not refs:
            del self.made[place]
        return [one for ref in refs if (one := ref()) is not None]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _is_view(one: Operation) -> bool:
    """Whether the result may share memory with the operands."""
    if one.target is operator.getitem:
        return _is_view(one.args[0])
    return isinstance(one.target, OpOverload) and any(given.alias_info for given in one.target._schema.returns)


def _tells_shapes(func: Any, found: Any) -> bool:
    """Whether the result depends only on the shapes of inputs and is small enough to be a constant."""
    if isinstance(found, Tensor):
        return found.is_meta or (func.overloadpacket in FILLED and found.nbytes <= SMALL)
    return isinstance(found, (bool, int))


def _reads_values(func: Any, indices: Sequence[Tensor]) -> bool:
    """Whether the shape of the result, or what happens next, depends on values. Masks do; integer indices do not."""
    if func is aten.index.Tensor and all(t.dtype not in (torch.bool, torch.uint8) for t in indices):
        return False
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))


def _without_writing(func: Any) -> Any:
    """The operation that returns as a new tensor what `func` writes to its first argument; None if there is none."""
    if func is aten.transpose_.default:
        return aten.transpose.int
    name = func._schema.name.removeprefix("aten::")
    writes = [given.alias_info is not None and given.alias_info.is_write for given in func._schema.arguments]
    if not name.endswith("_") or not writes[0] or any(writes[1:]):
        return None
    return getattr(getattr(aten, name.removesuffix("_"), None), func._overloadname, None)


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors in the same memory may share an element. Chunks of a third tensor do not, for example."""
    if one.shape != other.shape or one.stride() != other.stride():
        return True
    steps = sorted(zip(one.stride(), one.shape, strict=True), reverse=True)
    return _reached(int(one.storage_offset()) - int(other.storage_offset()), steps)


def _reached(distance: int, steps: list[tuple[int, int]]) -> bool:
    """Whether sum_i k_i * stride_i = distance for some |k_i| < size_i; `steps`: (stride, size) in descending order."""
    if not steps or not steps[0][0]:
        return distance == 0
    (stride, size), *rest = steps
    nearest = distance // stride
    return any(-size < k < size and _reached(distance - k * stride, rest) for k in (nearest, nearest + 1))


def _tensors(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else inside(found, Tensor) if isinstance(found, (list, tuple)) else []


def _changed(values: Iterable[Any], change: Callable[[Tensor], Operation]) -> tuple[Any, ...]:
    """The values with each tensor replaced by the operation that produces it."""
    return tuple(
        change(each)
        if isinstance(each, Tensor)
        else _changed(each, change)
        if isinstance(each, (list, tuple))
        else each
        for each in values
    )


def _frozen(values: Iterable[Any]) -> tuple[Any, ...]:
    """The values as a dictionary key that distinguishes 1, 1.0 and True, and 0.0 from -0.0."""
    return tuple(
        each
        if isinstance(each, Operation)
        else _frozen(each)
        if isinstance(each, (list, tuple))
        else (type(each), str(each) if isinstance(each, float) else each)
        for each in values
    )


def _like(found: Any) -> Like | None:
    return Like(tuple(found.shape), found.dtype, found.is_contiguous()) if isinstance(found, Tensor) else None


def _plain(value: Tensor) -> float | None:
    """The common value of all entries of a small floating-point tensor; None if they differ."""
    if not value.is_floating_point() or value.nbytes > SMALL or not value.numel():
        return None
    first = value.reshape(-1)[0]
    return float(first) if bool((value == first).all()) else None
