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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import TensorWeakRef

from quickstudy.engine.programs.facts import (
    changed,
    frozen,
    is_view,
    like,
    memory_of,
    overlap,
    plain_value,
    reads_values,
    tells_shapes,
    tensors_of,
    without_writing,
)
from quickstudy.engine.programs.operations import CONSTANT, INPUT, Operation, as_function, inside
from quickstudy.engine.programs.rewriting import CHECK, VIEWS, finished, rewritten

Program = Callable[..., list[Tensor]]

aten = torch.ops.aten
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
            outputs = list(function(*given))
        return recorder.program(len(given), outputs)


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
        self.operations.append(Operation(INPUT, like=like(tensor)))
        self._is(tensor, self.operations[-1])
        return tensor

    def program(self, inputs: int, outputs: list[Tensor]) -> Program:
        self._depend(outputs)
        results: list[Operation] = []
        for tensor in outputs:
            results.append(self._own(self._operand(tensor), results))
        return as_function(self.operations[:inputs], finished(self.operations, results), results)

    def _own(self, one: Operation, others: Sequence[Operation]) -> Operation:
        """The result in its own memory, so that the caller may write to it."""
        if not (one in others or one.target in (INPUT, CONSTANT) or is_view(one)):
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
        if any(memory_of(tensor) in self.depending for tensor in others):
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
        if depends and reads_values(func, tensors[1:]):
            raise RuntimeError(f"it decides on a tensor's values ({func})")
        if depends and func.overloadpacket in STRIDED:
            raise RuntimeError(f"it counts on a layout in memory that may be another one next time ({func})")
        result = func(*args, **kwargs)
        if depends and not tells_shapes(func, result):
            self._keep(result, self._emit(func, args, kwargs, result))
        self._see(result, tensors)
        return result

    # --- operations ---

    def _emit(self, func: Any, args: Any, kwargs: Any, result: Any) -> Operation:
        return self._once(Operation(func, *self._operands(args, kwargs), like=like(result)))

    def _operands(self, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        named = dict(zip(kwargs, changed(kwargs.values(), self._operand), strict=True)) if kwargs else {}
        return changed(args, self._operand), named

    def _once(self, one: Operation) -> Operation:
        """The simplified operation, or the equal one recorded before while a result of it is still in memory.

        An adjoint may free tensors to save memory and compute them again. The program then computes them again too.
        """
        one = rewritten(one)
        if one in self.results or one.target in (INPUT, CONSTANT):
            return one
        key = (one.target, frozen(one.args), *(frozen(one.kwargs.items()) if one.kwargs else ()))
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

    def _keep(self, result: Any, one: Operation) -> None:
        if isinstance(result, Tensor):
            self._is(result, one)
            return
        if result is None and one.target is not CHECK:
            raise RuntimeError(f"it does something that has no result ({one.target})")
        for i, tensor in enumerate(result or ()):
            if isinstance(tensor, Tensor):
                self._is(tensor, self._once(Operation(operator.getitem, (one, i), like=like(tensor))), one)

    def _operand(self, tensor: Tensor) -> Operation:
        return self.source(tensor) or self._constant(tensor)

    def _constant(self, tensor: Tensor) -> Operation:
        """The constant for a tensor that depends on no input.

        It holds the tensor itself if that comes from outside, and a copy if it was made while recording.
        """
        ref, version, one = self.kept.get(id(tensor), (None, None, None))
        if one is not None and ref is not None and ref() is tensor and version == tensor._version:
            return one
        made = memory_of(tensor) in self.made
        value = tensor.detach().clone() if made else tensor.detach()
        plain = plain_value(value) if made else None
        key = (CONSTANT, str(plain), value.shape, value.dtype, value.device)
        one = self.known.get(key) if plain is not None else None
        if one is None:
            one = Operation(CONSTANT, (value,), like=like(value))
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
        target, twin = args[0] if args else None, without_writing(func)
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
            others = [one for one in sharing if one is not target and overlap(one, target)]
            self.stale |= {id(one): TensorWeakRef(one) for one in others}
        result = func(*args, **kwargs)
        self._is(target, self._once(Operation(twin, *given, like=like(target))))
        return result

    def _see(self, result: Any, inputs: list[Tensor]) -> None:
        outside = {place for place in map(memory_of, inputs) if place not in self.made}
        for tensor in tensors_of(result):
            if (place := memory_of(tensor)) not in outside:
                self.made.setdefault(place, []).append(TensorWeakRef(tensor))

    def _sharing(self, tensor: Tensor) -> list[Tensor]:
        """The tensors made while recording in this one's memory, including itself; none if it comes from outside."""
        place = memory_of(tensor)
        self.made[place] = refs = [ref for ref in self.made.get(place, ()) if ref() is not None]
        if not refs:
            del self.made[place]
        return [one for ref in refs if (one := ref()) is not None]
