"""Blocks of networks as registered PyTorch operators, torch.ops.gnnscale.*, which any architecture can call from Python.

Each is written here once in plain PyTorch, which defines it, and is computed by gnnscale/native/operators.h for float32 and
float64 on a CPU. Everywhere else, and where there is no compiled library, the definition itself is differentiated. Every
operator NAME has a NAME_backward, and this has a NAME_double_backward: enough to learn forces that are derivatives.
A, E, W, R are the numbers of atoms, edges, channels and radial functions.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op, infer_schema

from gnnscale.native.library import open_library
from gnnscale.native.packing import PAD

Function = TypeVar("Function", bound=Callable[..., Any])
Tensors = list[Tensor]


# ------------------------------------------------------------------------------------------------------------ registration
class Kernels(Protocol):
    """The compiled functions of an operator: values, derivatives by the operands, and the derivatives of these.

    `by` are derivatives by the results, `u` derivatives by what `reverse` returned. What is not wanted may be left empty.
    """

    def values(self, library: ctypes.CDLL, operands: Tensors, others: list[Any]) -> Tensors: ...

    def reverse(
        self, library: ctypes.CDLL, by: Tensors, operands: Tensors, others: list[Any], wanted: list[bool]
    ) -> Tensors: ...

    def second_reverse(
        self, library: ctypes.CDLL, u: Tensors, by: Tensors, operands: Tensors, others: list[Any], wanted: list[bool]
    ) -> Tensors: ...


class Operator:
    """A function of tensors, its derivative and the derivative of that, as three operators of PyTorch.

    The function can be differentiated by its first `operands`.
    """

    def __init__(self, formula: Callable[..., Any], kernels: Kernels, operands: int):
        self.formula, self.kernels, self.operands = formula, kernels, operands
        arguments, _, results = infer_schema(formula, mutates_args=())[1:].rpartition(") -> ")
        self.results = results.count("Tensor")
        by = [f"Tensor by_{k}" for k in range(self.results)]
        u = [f"Tensor u_{k}" for k in range(operands)]
        name, wanted = f"gnnscale::{formula.__name__}", "bool[] wanted"
        self.forward = define(name, self.values, [arguments], self.results)
        self.backward = define(f"{name}_backward", self.reverse, [*by, arguments, wanted], operands)
        given = [*u, *by, arguments, wanted]
        self.double_backward = define(f"{name}_double_backward", self.second_reverse, given, self.results + operands)
        self.forward.register_fake(self.values_of_fakes)
        self.backward.register_fake(self.reverse_of_fakes)
        self.double_backward.register_fake(self.second_reverse_of_fakes)
        self.forward.register_autograd(self.differentiate, setup_context=remember)
        self.backward.register_autograd(self.differentiate_twice, setup_context=remember)
        self.double_backward.register_autograd(self.refuse, setup_context=remember)

    # --------------------------------------------------------------------------------------------- what the operators do
    def values(self, *arguments: Any) -> Tensor | tuple[Tensor, ...]:
        operands, others = split(arguments, self.operands)
        library = find_library(operands)
        if library is None:
            return join(as_list(self.formula(*arguments)))
        return join(self.kernels.values(library, contiguous(operands), contiguous(others)))

    def reverse(self, *arguments: Any) -> Tensor | tuple[Tensor, ...]:
        by, operands, (*others, wanted) = split(arguments, self.results, self.operands)
        library = find_library([*by, *operands])
        if library is None:
            return join(keep_wanted(self.reverse_formula(by, operands, others), wanted))
        return join(self.kernels.reverse(library, contiguous(by), contiguous(operands), contiguous(others), wanted))

    def second_reverse(self, *arguments: Any) -> Tensor | tuple[Tensor, ...]:
        u, by, operands, (*others, wanted) = split(arguments, self.operands, self.results, self.operands)
        # nothing came back for a derivative that was not wanted
        u = [torch.zeros_like(x) if t.shape != x.shape else t for t, x in zip(u, operands, strict=True)]
        library = find_library([*u, *by, *operands])
        if library is None:
            made = self.second_reverse_formula(u, by, operands, others)
        else:
            rows = contiguous(u), contiguous(by), contiguous(operands), contiguous(others)
            made = self.kernels.second_reverse(library, *rows, wanted)
        return join([*made[: self.results], *keep_wanted(made[self.results :], wanted)])

    def reverse_formula(self, by: Tensors, operands: Tensors, others: list[Any]) -> Tensors:
        pull = torch.func.vjp(lambda *x: tuple(as_list(self.formula(*x, *others))), *operands)[1]
        return list(pull(tuple(by)))

    def second_reverse_formula(self, u: Tensors, by: Tensors, operands: Tensors, others: list[Any]) -> Tensors:
        def reverse(*given: Tensor) -> tuple[Tensor, ...]:
            return tuple(self.reverse_formula(list(given[: len(by)]), list(given[len(by) :]), others))

        pull = torch.func.vjp(reverse, *by, *operands)[1]
        return list(pull(tuple(u)))

    # ------------------------------------------------------------------------------------------- shapes, for torch.compile
    def values_of_fakes(self, *arguments: Any) -> Tensor | tuple[Tensor, ...]:
        return join(as_list(self.formula(*arguments)))

    def reverse_of_fakes(self, *arguments: Any) -> Tensor | tuple[Tensor, ...]:
        operands = list(arguments[self.results :][: self.operands])
        return join(keep_wanted(empty_like(operands), arguments[-1]))

    def second_reverse_of_fakes(self, *arguments: Any) -> Tensor | tuple[Tensor, ...]:
        _, by, operands, rest = split(arguments, self.operands, self.results, self.operands)
        return join([*empty_like(by), *keep_wanted(empty_like(operands), rest[-1])])

    # --------------------------------------------------------------------------------------------------------- derivatives
    def differentiate(self, ctx: Any, *by: Tensor) -> tuple[Tensor | None, ...]:
        arguments = recall(ctx)
        wanted = list(ctx.needs_input_grad[: self.operands])
        made = as_list(self.backward(*by, *arguments, wanted))
        return only_wanted(made, wanted) + (None,) * (len(arguments) - self.operands)

    def differentiate_twice(self, ctx: Any, *u: Tensor) -> tuple[Tensor | None, ...]:
        arguments = recall(ctx)
        count = self.results + self.operands
        wanted = list(ctx.needs_input_grad[:count])
        made = as_list(self.double_backward(*u, *arguments[:-1], wanted[self.results :]))
        return only_wanted(made, wanted) + (None,) * (len(arguments) - count)

    def refuse(self, ctx: Any, *by: Tensor) -> None:
        raise NotImplementedError(f"{self.formula.__name__} can be differentiated twice, not three times")


def operator(kernels: Kernels, operands: int) -> Callable[[Function], Function]:
    """Make a function in plain PyTorch an operator, which compiled kernels compute where they can."""

    def register(formula: Function) -> Function:
        made = Operator(formula, kernels, operands)

        @wraps(formula)
        def call(*arguments: Any) -> Any:
            # What torch.compile sees is an operator, with or without the library.
            if torch.compiler.is_compiling() or find_library(list(arguments[:operands])):
                return made.forward(*arguments)
            return formula(*arguments)

        return call  # type: ignore[return-value] # its type is that of the formula

    return register


def define(name: str, function: Callable[..., Any], arguments: list[str], results: int) -> Any:
    returned = "Tensor" if results == 1 else f"({', '.join(['Tensor'] * results)})"
    return custom_op(name, function, mutates_args=(), schema=f"({', '.join(arguments)}) -> {returned}")


def split(arguments: Sequence[Any], *counts: int) -> list[list[Any]]:
    """Cut arguments into lists of these lengths and the rest."""
    parts, rest = [], list(arguments)
    for count in counts:
        parts.append(rest[:count])
        rest = rest[count:]
    return [*parts, rest]


def remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
    ctx.others = [None if isinstance(x, Tensor) else x for x in inputs]


def recall(ctx: Any) -> list[Any]:
    """Return all arguments of the call that a derivative belongs to."""
    saved = iter(ctx.saved_tensors)
    return [next(saved) if x is None else x for x in ctx.others]


def as_list(results: Any) -> Tensors:
    return [results] if isinstance(results, Tensor) else list(results)


def join(results: Tensors) -> Tensor | tuple[Tensor, ...]:
    """Return results as an operator must: a tensor, or several, contiguous."""
    made = contiguous(results)
    return made[0] if len(made) == 1 else tuple(made)


def contiguous(arguments: list[Any]) -> list[Any]:
    return [x.contiguous() if isinstance(x, Tensor) else x for x in arguments]


def empty_like(tensors: Tensors) -> Tensors:
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors]


def keep_wanted(tensors: Tensors, wanted: list[bool]) -> Tensors:
    """Put an empty tensor in place of each that is not wanted, as an operator cannot return None."""
    return [x if keep else x.new_empty(0) for x, keep in zip(tensors, wanted, strict=True)]


def only_wanted(tensors: Tensors, wanted: list[bool]) -> tuple[Tensor | None, ...]:
    return tuple(x if keep else None for x, keep in zip(tensors, wanted, strict=True))


def find_library(tensors: Tensors) -> ctypes.CDLL | None:
    """Return the library for these tensors, or None where the formula computes."""
    dtype = tensors[0].dtype
    if any(x.device.type != "cpu" or x.dtype != dtype for x in tensors):
        return None
    return open_library(dtype)


# -------------------------------------------------------------------------------------------------- functions of each row
class RowKernels:
    """The kernels of a function from rows (..., W) to rows of the same shape."""

    def __init__(self, name: str):
        self.name = f"native_op_{name}"

    def values(self, library: ctypes.CDLL, operands: Tensors, others: list[Any]) -> Tensors:
        return self.run(getattr(library, self.name), operands, 1)

    def reverse(self, library: ctypes.CDLL, by: Tensors, operands: Tensors, *others: Any) -> Tensors:
        return self.run(getattr(library, f"{self.name}_backward"), [*by, *operands], 1)

    def second_reverse(self, library: ctypes.CDLL, u: Tensors, by: Tensors, operands: Tensors, *others: Any) -> Tensors:
        return self.run(getattr(library, f"{self.name}_double_backward"), [*u, *by, *operands], 2)

    @staticmethod
    def run(function: Callable[..., None], given: Tensors, results: int) -> Tensors:
        x = given[-1]
        made = [torch.empty_like(x) for _ in range(results)]
        width = x.shape[-1] if x.dim() else 1
        function(x.numel() // max(width, 1), width, *addresses(given), *addresses(made))
        return made


def addresses(tensors: Tensors) -> list[int]:
    return [x.data_ptr() for x in tensors]


@operator(RowKernels("silu"), operands=1)
def silu(x: Tensor) -> Tensor:
    """Return x sigmoid(x)."""
    return F.silu(x)


@operator(RowKernels("rms_norm"), operands=1)
def rms_norm(x: Tensor) -> Tensor:
    """Scale each row to unit rms."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


# ------------------------------------------------------------------------------------------------------ geometry of edges
class GeometryKernels:
    """The kernels of `edge_geometry`."""

    def values(self, library: ctypes.CDLL, operands: Tensors, others: list[Any]) -> Tensors:
        (vectors,) = operands
        made = [vectors.new_empty(len(vectors), others[1]), vectors.new_empty(4, len(vectors))]
        library.native_op_edge_geometry(*self.describe(vectors, others), *addresses([vectors, *made]))
        return made

    def reverse(
        self, library: ctypes.CDLL, by: Tensors, operands: Tensors, others: list[Any], wanted: list[bool]
    ) -> Tensors:
        (vectors,) = operands
        made = torch.empty_like(vectors)
        given = addresses([*by, vectors, made])
        library.native_op_edge_geometry_backward(*self.describe(vectors, others), *given)
        return [made]

    def second_reverse(
        self, library: ctypes.CDLL, u: Tensors, by: Tensors, operands: Tensors, others: list[Any], wanted: list[bool]
    ) -> Tensors:
        (vectors,) = operands
        made = empty_like([*by, vectors])
        given = addresses([*u, *by, vectors, *made])
        library.native_op_edge_geometry_double_backward(*self.describe(vectors, others), *given)
        return made

    @staticmethod
    def describe(vectors: Tensor, others: list[Any]) -> tuple[int, int, float, float]:
        cutoff, radial, scale = others
        if vectors.shape[1:] != (3,) or radial < 1:
            raise ValueError(
                f"vectors are {tuple(vectors.shape)} with {radial} radial functions; expected (E, 3) and 1 or more"
            )
        return len(vectors), radial, cutoff, scale


@operator(GeometryKernels(), operands=1)
def edge_geometry(vectors: Tensor, cutoff: float, radial: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return the radial basis sin(n pi r/r_c)/r, (E, R) of unit rms, and (4, E) w and w u, from vectors (E, 3).

    The envelope is w = scale (1 - (r/r_c)^4)^3, and u are unit vectors.
    """
    r = torch.linalg.vector_norm(vectors, dim=1)  # (E,)
    n = torch.arange(1, radial + 1, device=r.device, dtype=r.dtype)
    basis = torch.sin(r[:, None] * (n * (math.pi / cutoff))) * (math.sqrt(2 / 3) * cutoff / r[:, None])
    w = scale * (1 - (r / cutoff) ** 4).clamp(min=0) ** 3
    return basis, torch.cat((w[None], vectors.t() * (w / r)))


# --------------------------------------------------------------------------------------------------------------- messages
class EdgeList(ctypes.Structure):
    """A graph, as operators.h has it."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("atoms", "edges", "width", "radial")),
        *((name, ctypes.c_void_p) for name in ("receivers", "senders")),
    )


class Operands(ctypes.Structure):
    """The addresses of operands of messages, of tangents along them, or of derivatives by them."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("table", "basis", "scale", "radial", "second", "bias"))


class Padded(NamedTuple):
    """Operands of messages whose channels are padded with zeros to full vectors; W_r is transposed."""

    tensors: Tensors
    width: int  # without padding

    @staticmethod
    def pad(operands: Tensors) -> Padded:
        table, basis, scale, radial, *second = operands
        width = len(radial)
        halves = pad_channels(table.view(-1, 2, width))
        matrices = [pad_channels(pad_channels(second[0]).t()).t(), pad_channels(second[1])] if second else []
        return Padded(contiguous([halves.flatten(1), basis, scale, pad_channels(radial.t()), *matrices]), width)

    def cut(self) -> Tensors:
        """Return tensors that lie as operands do."""
        table, basis, scale, radial, *second = self.tensors
        halves = table.view(len(table), 2, -1)[..., : self.width]
        matrices = [second[0][: self.width, : self.width], second[1][: self.width]] if second else []
        return [halves.flatten(1), basis, scale, radial.t()[: self.width], *matrices]

    @property
    def room(self) -> int:
        return self.tensors[3].shape[1]

    def empty(self) -> Padded:
        return Padded(empty_like(self.tensors), self.width)

    def describe(self, edges: bool = True) -> Operands:
        """Give addresses, without those of basis and scale if nothing is wanted there."""
        return Operands(*(x.data_ptr() if edges or k not in (1, 2) else None for k, x in enumerate(self.tensors)))


def pad_channels(x: Tensor) -> Tensor:
    return F.pad(x, (0, -x.shape[-1] % PAD)) if x.shape[-1] % PAD else x


class MessageKernels:
    """The kernels of messages, with a second matrix on each edge or without it."""

    def values(self, library: ctypes.CDLL, operands: Tensors, others: list[Any]) -> Tensors:
        x = self.check(operands, others)
        sums = x.tensors[0].new_empty(4, len(x.tensors[0]), x.room)
        self.run(library.native_op_message_sums, x, others, x.describe(), sums)
        return [sums[..., : x.width]]

    def reverse(
        self, library: ctypes.CDLL, by: Tensors, operands: Tensors, others: list[Any], wanted: list[bool]
    ) -> Tensors:
        x = self.check(operands, others)
        made = x.empty()
        given = x.describe(), pad_channels(by[0]), made.describe(edges=wanted[1] or wanted[2])
        self.run(library.native_op_message_sums_backward, x, others, *given)
        return keep_wanted(made.cut(), wanted)

    def second_reverse(
        self, library: ctypes.CDLL, u: Tensors, by: Tensors, operands: Tensors, others: list[Any], wanted: list[bool]
    ) -> Tensors:
        x, tangents = self.check(operands, others), Padded.pad(u)
        given, made = pad_channels(by[0]), x.empty()
        sums = torch.empty_like(given)
        self.run(
            library.native_op_message_sums_double_backward,
            *(x, others, tangents.describe(), given, x.describe(), sums),
            made.describe(edges=wanted[1] or wanted[2]),
        )
        return [sums[..., : x.width], *made.cut()]

    @staticmethod
    def check(operands: Tensors, others: list[Any]) -> Padded:
        """Return operands that are padded, if their shapes are right."""
        table, basis, _, radial = operands[:4]
        atoms, edges, width = len(table), len(basis), len(radial)
        shapes: list[tuple[int, ...]] = [
            (atoms, 2 * width),
            (edges, radial.shape[-1]),
            (4, edges),
            (width, radial.shape[-1]),
        ]
        shapes += [(width, width), (width,)][: len(operands) - 4]
        expected, found = [*shapes, (edges,), (edges,)], [tuple(x.shape) for x in (*operands, *others)]
        if found != expected or radial.numel() == 0:
            raise ValueError(f"operands of messages have the shapes {found}; expected {expected} with channels")
        return Padded.pad(operands)

    @staticmethod
    def run(function: Callable[..., int], x: Padded, others: list[Any], *given: Operands | Tensor) -> None:
        receivers, senders = (index.to(torch.int64) for index in others)
        counts = len(x.tensors[0]), len(x.tensors[1]), x.room, len(x.tensors[3])
        graph = EdgeList(*counts, receivers.data_ptr(), senders.data_ptr())
        pointers = [each.data_ptr() if isinstance(each, Tensor) else ctypes.byref(each) for each in given]
        if not function(ctypes.byref(graph), *pointers):
            raise IndexError(f"receivers must ascend, and all indices must be below the number of atoms, {counts[0]}")


@operator(MessageKernels(), operands=4)
def message_sums(
    table: Tensor, basis: Tensor, scale: Tensor, radial: Tensor, receivers: Tensor, senders: Tensor
) -> Tensor:
    """Sum messages SiLU(P_i + Q_j + W_r b) over the edges of each receiver, with each of four scales: (4, A, W).

    The table (A, 2W) has P beside Q; basis is (E, R), scale (4, E), radial (W, R). Receivers ascend. The kernels keep
    nothing as large as edges x channels, nor does what is stored for the derivative.
    """
    return four_sums(F.silu(first_matrix(table, basis, radial, receivers, senders)), scale, receivers, len(table))


@operator(MessageKernels(), operands=6)
def edge_message_sums(
    table: Tensor,
    basis: Tensor,
    scale: Tensor,
    radial: Tensor,
    second: Tensor,
    bias: Tensor,
    receivers: Tensor,
    senders: Tensor,
) -> Tensor:
    """Sum messages SiLU(W_2 SiLU(P_i + Q_j + W_r b) + b_2) as `message_sums` does; the second matrix is (W, W)."""
    x = F.silu(first_matrix(table, basis, radial, receivers, senders))
    return four_sums(F.silu(F.linear(x, second, bias)), scale, receivers, len(table))


def first_matrix(table: Tensor, basis: Tensor, radial: Tensor, receivers: Tensor, senders: Tensor) -> Tensor:
    """Return P_i + Q_j + W_r b, (E, W)."""
    p, q = table.chunk(2, dim=1)
    return p.index_select(0, receivers) + q.index_select(0, senders) + basis @ radial.t()


def four_sums(m: Tensor, scale: Tensor, receivers: Tensor, atoms: int) -> Tensor:
    """Sum messages (E, W) with each of the scales (4, E) over the edges of each receiver: (4, A, W)."""
    zeros = m.new_zeros(atoms, m.shape[1])
    return torch.stack([zeros.index_add(0, receivers, m * each[:, None]) for each in scale])


# ---------------------------------------------------------------------------------------------------------- sums of rows
@custom_op("gnnscale::sum_rows", mutates_args=())
def sum_rows(x: Tensor, index: Tensor, count: int) -> Tensor:
    """Sum the rows of x that have the same index, in their order: (count, ...), zero where there are none."""
    library = find_library([x])
    if library is None:
        return x.new_zeros(count, *x.shape[1:]).index_add_(0, index, x)
    if index.shape != x.shape[:1]:
        raise ValueError(f"there are {tuple(index.shape)} indices for {len(x)} rows")
    x, index = x.contiguous(), index.to(torch.int64).contiguous()
    sums = x.new_empty(count, *x.shape[1:])
    if not library.native_op_sum_rows(len(x), count, math.prod(x.shape[1:]), *addresses([index, x, sums])):
        raise IndexError(f"an index is not below the number of sums, {count}")
    return sums


@sum_rows.register_fake
def _(x: Tensor, index: Tensor, count: int) -> Tensor:
    return x.new_empty(count, *x.shape[1:])


def take_rows(ctx: Any, by: Tensor) -> tuple[Tensor, None, None]:
    index = recall(ctx)[1]
    return by.index_select(0, index), None, None


sum_rows.register_autograd(take_rows, setup_context=remember)
