"""From a network to its program: the network's own forward pass is run once with stand-ins for tensors.

So a network is declared once, in PyTorch. What it calls becomes a list of blocks, which gnnscale/native/library.cpp
executes: that knows blocks and no architecture. A network that calls anything else has no program, and the reason is
given in words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gnnscale.atoms.graph import AtomGraphs
from gnnscale.models.edges import edge_messages, make_edges
from gnnscale.models.kernels.chunked import Weights
from gnnscale.models.layers import StandIn, linear_by_source, read_atoms, rms_norm, vector_lengths
from gnnscale.models.moment_edges import contract_tensors, make_moment_edges, moment_messages
from gnnscale.models.potential import Potential, find_hidden_matrices
from gnnscale.native.packing import PAD, Packing, Place, Span

FORMAT, HEADER = 1, 10  # of a program; numbers before its variables
ABSENT = -1
ROWS = -1  # the number of atoms, which a program does not know


class Op(IntEnum):
    """The blocks, as library.cpp numbers them; after each its operands."""

    EMBED = 0  # out, index, rows, table, base
    LINEAR = 1  # x, out, weight, bias, base
    SILU = 2  # x, out
    NORM = 3  # x, out, norms, width
    LENGTH = 4  # x, out
    SCALE = 5  # x, out, weight, base
    MESSAGES = 6  # table, sums, moments, radial
    EDGE_MESSAGES = 7  # table, sums, moments, radial, second, second_bias
    DIRECT = 8  # vectors, out, energy, forces, channels
    SOURCE_LINEAR = 9  # x, out, weight, sources
    ADD = 10  # a, b, out
    COPY = 11  # x, out
    CONTRACTION = 12  # vectors, tensors, out
    MOMENT_MESSAGES = 13  # table, sums, moments, seconds, radial, vectors, tensors, angles, channels
    CAT = -1  # parts..., out: no block, as parts are written to their places in it


HAS_BASE = (Op.EMBED, Op.LINEAR, Op.SCALE)  # a sum with what these write costs nothing
ON_PADDED = (Op.SILU, Op.NORM, Op.SCALE)  # loops over whole vectors


class Unrecordable(Exception):
    """The end of a recording: the network does something for which there is no block."""


class Program(NamedTuple):
    """A network as the library executes it."""

    code: np.ndarray  # int64
    packing: Packing
    cutoff: float  # Angstrom
    scale: float  # of the envelope of edges
    gradient: bool  # forces are slopes of the energy


class Geometry(NamedTuple):
    """The numbers that all messages of a network have in common."""

    cutoff: float
    radial: int
    scale: float


class Input(StandIn):
    """A stand-in for a tensor of the batch, which only a few blocks take as it is."""

    def __init__(self, recorder: Recorder, name: str):
        self.recorder, self.name = recorder, name

    @classmethod
    def __torch_function__(cls, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Be called by torch in the place of `function`."""
        flat = [each for given in args for each in (given if isinstance(given, list | tuple) else (given,))]
        stand_in = next(each for each in flat if isinstance(each, Input))
        return stand_in.recorder.call(function, *args, **(kwargs or {}))

    def record_call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        return self.recorder.call(function, *arguments)

    def __getitem__(self, index: Any) -> Input:
        return self.recorder.index(self, index)

    def __add__(self, other: Any) -> Any:
        return self.recorder.call(torch.Tensor.add, self, other)

    def __mul__(self, other: Any) -> Any:
        return self.recorder.call(torch.Tensor.mul, self, other)

    def __getattr__(self, name: str) -> NoReturn:
        raise Unrecordable(f"it asks a tensor for {name}")


class Value(Input):
    """A stand-in for what a block writes: rows of atoms, or three or five components of them."""

    def __init__(self, recorder: Recorder, width: int, components: int = 1, like: Value | None = None):
        super().__init__(recorder, "a value")
        self.width, self.components, self.like = width, components, like
        self.spans: tuple[Span, ...] = (Span.padded(width),)
        self.parts: tuple[Value, ...] = ()  # that lie side by side in it

    @property
    def shape(self) -> tuple[int, ...]:
        return (ROWS, self.width) if self.components == 1 else (self.components, ROWS, self.width)

    @property
    def layout(self) -> tuple[Span, ...]:
        """The columns as they are stored."""
        if self.like:
            return self.like.layout
        return tuple(span for part in self.parts for span in part.layout) or self.spans

    @property
    def columns(self) -> int:
        return sum(span.room for span in self.layout)

    def store_as(self, *spans: Span) -> None:
        """Decide how the columns are stored; whoever writes them must leave that open."""
        if self.layout == spans:
            return
        if self.like or self.parts or sum(span.size for span in spans) != self.width:
            raise Unrecordable("it reads a value in a way that its block does not store")
        self.spans = spans


class Node(NamedTuple):
    """A block and its operands: values, parameters, numbers, or None for one that is absent."""

    op: Op
    operands: list[Any]
    written: tuple[Value, ...]

    @property
    def read(self) -> list[Value]:
        written = set(map(id, self.written))
        return [each for each in self.operands if isinstance(each, Value) and id(each) not in written]


class Recorder:
    """The calls of one network so far, as blocks in the order of execution."""

    def __init__(self, names: dict[int, str], sources: int):
        self.names, self.sources = names, sources
        self.nodes: list[Node] = []
        self.places: dict[str, Callable[[], Place]] = {}  # made when all layouts are decided
        self.geometry: Geometry | None = None

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Record a call of a function."""
        if function not in CALLS:
            raise Unrecordable(f"there is no block for {getattr(function, '__name__', function)}")
        return CALLS[function](self, *args, **kwargs)

    def add(self, op: Op, operands: list[Any], *written: Value) -> None:
        self.nodes.append(Node(op, operands, written))

    def parameter(
        self, tensor: Any, rows: Callable[[], tuple[Span, ...]], columns: Callable[[], tuple[Span, ...]], **how: bool
    ) -> Tensor:
        """Note how a parameter is stored, whose rows and columns depend on layouts that may still change."""
        name = self.names.get(id(tensor))
        if name is None:
            raise Unrecordable("it multiplies with a tensor that is none of its parameters")
        if name in self.places:
            raise Unrecordable(f"two blocks use {name}")
        self.places[name] = lambda: Place(name, tuple(tensor.shape), rows(), columns(), **how)
        return tensor

    # --------------------------------------------------------------------------------------------- plain torch calls
    def index(self, tensor: Input, index: Any) -> Input:
        if tensor.name == "source" and isinstance(index, Input) and index.name == "structure":
            return Input(self, "source of atoms")
        if isinstance(tensor, Value) and tensor.width == 1 and index == (slice(None), 0):
            tensor.store_as(Span.exact(1))
            return tensor
        raise Unrecordable(f"it takes parts of {tensor.name}")

    def embedding(self, index: Input, table: Tensor, *, padding_idx: None, max_norm: None, **unused: object) -> Value:
        kinds = {"numbers": 0, "source of atoms": 1}
        if index.name not in kinds or padding_idx is not None or max_norm is not None:
            raise Unrecordable(f"it embeds {index.name}")
        out = Value(self, table.shape[1])
        weight = self.parameter(table, lambda: (Span.exact(table.shape[0]),), lambda: out.layout)
        self.add(Op.EMBED, [out, kinds[index.name], table.shape[0], weight, None], out)
        return out

    def linear(self, x: Value, weight: Tensor, bias: Tensor | None = None) -> Value:
        out = Value(self, weight.shape[0], x.components)
        if x.components > 1:  # no padding, whose lengths would not be 0
            out.store_as(Span.exact(out.width))
        matrix = self.parameter(weight, lambda: out.layout, lambda: x.layout)
        shift = None if bias is None else self.parameter(bias, lambda: (Span.exact(1),), lambda: out.layout)
        self.add(Op.LINEAR, [x, out, matrix, shift, None], out)
        return out

    def silu(self, x: Value, inplace: bool = False) -> Value:
        out = Value(self, x.width, x.components, like=x)
        self.add(Op.SILU, [x, out], out)
        return out

    def plus(self, a: Value, b: Value) -> Value:
        if not (isinstance(a, Value) and isinstance(b, Value) and a.shape == b.shape):
            raise Unrecordable("it adds what are no two values of one shape")
        if a.layout != b.layout:
            raise Unrecordable("it adds values that are stored in two ways")
        out = Value(self, a.width, a.components, like=a)
        self.add(Op.ADD, [a, b, out], out)
        return out

    def times(self, a: Any, b: Any) -> Value:
        weight, x = (a, b) if isinstance(b, Value) else (b, a)
        if not isinstance(x, Value) or tuple(getattr(weight, "shape", ())) != (x.width,):
            raise Unrecordable("it multiplies what is no value and one number for each channel")
        out = Value(self, x.width, x.components, like=x)
        factors = self.parameter(weight, lambda: (Span.exact(1),), lambda: x.layout)
        self.add(Op.SCALE, [x, out, factors, None], out)
        return out

    def cat(self, parts: tuple[Value, ...], dim: int = 0) -> Value:
        if dim != 1 or not all(isinstance(part, Value) and part.components == 1 for part in parts):
            raise Unrecordable("it concatenates what are no values of atoms")
        out = Value(self, sum(part.width for part in parts))
        out.parts = tuple(parts)
        self.add(Op.CAT, [*parts, out], out)
        return out

    # ------------------------------------------------------------------------------------------------- named blocks
    def norm(self, x: Value) -> Value:
        out, norms = Value(self, x.width, like=x), Value(self, 1)
        norms.store_as(Span.exact(1))
        self.add(Op.NORM, [x, out, norms, x.width], out, norms)
        return out

    def lengths(self, vectors: Value) -> Value:
        out = Value(self, vectors.width, like=vectors)
        self.add(Op.LENGTH, [vectors, out], out)
        return out

    def edges(
        self, graphs: AtomGraphs, vectors: Input, cutoff: float, radial: int, scale: Tensor, *unused: object
    ) -> Geometry:
        if getattr(vectors, "name", "") != "vectors" or self.geometry:
            raise Unrecordable("it has edges of another geometry than the batch's")
        self.geometry = Geometry(cutoff, radial, float(scale))
        return self.geometry

    def messages(self, table: Value, weights: Weights, edges: Geometry) -> tuple[Value, Value]:
        width = table.width // 2
        table.store_as(Span.padded(width), Span.padded(width))
        sums, moments = Value(self, width), Value(self, width, 3)
        radial = self.parameter(
            weights.radial, lambda: (Span.exact(edges.radial),), lambda: sums.layout, transposed=True
        )
        if weights.second is None:
            self.add(Op.MESSAGES, [table, sums, moments, radial], sums, moments)
        else:
            second = self.parameter(weights.second, lambda: sums.layout, lambda: sums.layout)
            bias = self.parameter(weights.bias, lambda: (Span.exact(1),), lambda: sums.layout)
            self.add(Op.EDGE_MESSAGES, [table, sums, moments, radial, second, bias], sums, moments)
        return sums, self.linear(moments, weights.mix)

    def moment_messages(
        self,
        table: Value,
        radial: Tensor,
        angles: Tensor | None,
        vectors: Value | None,
        tensors: Value | None,
        edges: Geometry,
    ) -> tuple[Value, Value, Value]:
        width = table.width // 2
        table.store_as(Span.padded(width), Span.padded(width))
        sums, moments, seconds = (Value(self, width, components) for components in (1, 3, 5))
        weights = self.parameter(radial, lambda: (Span.exact(edges.radial),), lambda: sums.layout, transposed=True)
        seen: list[Any] = [None, None, None, 0]
        if angles is not None:
            size = angles.shape[1]
            of_seen = self.parameter(angles, lambda: (Span.exact(size),), lambda: sums.layout, transposed=True)
            seen = [vectors, tensors, of_seen, size // 2]
        self.add(Op.MOMENT_MESSAGES, [table, sums, moments, seconds, weights, *seen], sums, moments, seconds)
        return sums, moments, seconds

    def contraction(self, vectors: Value, tensors: Value) -> Value:
        out = Value(self, vectors.width, like=vectors)
        self.add(Op.CONTRACTION, [vectors, tensors, out], out)
        return out

    def by_source(self, x: Value, weight: Tensor, source: Input, sources: int) -> Value:
        if source.name != "source of atoms" or sources != self.sources:
            raise Unrecordable("it has matrices for something else than sources")
        out = Value(self, weight.shape[0] // sources)
        matrices = self.parameter(weight, lambda: out.layout * sources, lambda: x.layout)
        self.add(Op.SOURCE_LINEAR, [x, out, matrices, sources], out)
        return out

    def read(self, out: Value, vectors: Value) -> tuple[Value, Value]:
        out.store_as(Span.exact(1 + vectors.width))
        energy, forces = Value(self, 1), Value(self, 3)
        energy.store_as(Span.exact(1))
        forces.store_as(Span.exact(3))
        self.add(Op.DIRECT, [vectors, out, energy, forces, vectors.width], energy, forces)
        return energy, forces


CALLS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.embedding: Recorder.embedding,
    F.linear: Recorder.linear,
    F.silu: Recorder.silu,
    torch.cat: Recorder.cat,
    torch.Tensor.add: Recorder.plus,
    torch.Tensor.mul: Recorder.times,
    rms_norm: Recorder.norm,
    vector_lengths: Recorder.lengths,
    make_edges: Recorder.edges,
    edge_messages: Recorder.messages,
    make_moment_edges: Recorder.edges,
    moment_messages: Recorder.moment_messages,
    contract_tensors: Recorder.contraction,
    linear_by_source: Recorder.by_source,
    read_atoms: Recorder.read,
}


def record(potential: Potential) -> Program | str:
    """Return the program of a network, or the reason why it has none."""
    backbone = potential.backbone
    recorder = Recorder({id(p): name for name, p in potential.named_parameters()}, len(potential.references))
    graphs = AtomGraphs(*(Input(recorder, name) for name in AtomGraphs._fields))  # type: ignore[arg-type] # stand-ins
    try:
        energy, forces = backbone.forward(graphs, Input(recorder, "vectors"))  # type: ignore[arg-type]
        if not isinstance(energy, Value) or potential.gradient != (forces is None) or recorder.geometry is None:
            raise Unrecordable("its results are no values of blocks")
        packing = pack_parameters(potential, recorder)
        code = write_code(recorder, energy, forces, packing)
    except Unrecordable as reason:
        return str(reason)
    except Exception as error:  # whatever a network may try with what is no tensor
        return f"{type(error).__name__}: {error}"
    return Program(code, packing, recorder.geometry.cutoff, recorder.geometry.scale, potential.gradient)


def pack_parameters(potential: Potential, recorder: Recorder) -> Packing:
    """Arrange the parameters; those that no block uses would be learned by nobody."""
    unused = [name for name, _ in potential.named_parameters() if name not in recorder.places]
    if unused:
        raise Unrecordable(f"no block uses {', '.join(unused)}")
    hidden = set(map(id, find_hidden_matrices(potential)))
    names = {recorder.names[each] for each in hidden}
    return Packing.arrange({name: recorder.places[name]() for name, _ in potential.named_parameters()}, names)


# ------------------------------------------------------------------------------------------------------- the program
def write_code(recorder: Recorder, energy: Value, forces: Value | None, packing: Packing) -> np.ndarray:
    """Return the program as the library reads it: a header, the variables, the blocks."""
    ends = [energy] if forces is None else [energy, forces]
    nodes, views = place_parts(fold_sums(recorder.nodes, ends), ends)
    for node in nodes:
        written = node.written[0]
        if node.op in ON_PADDED and any(span.room % PAD for span in written.layout):
            raise Unrecordable(f"it takes {node.op.name} of values that are not padded")
    # Roots first, as their views refer to them.
    variables = [v for node in nodes for v in node.written if v not in views]
    variables = [*dict.fromkeys([*(root for root, _ in views.values()), *variables]), *views]
    number = {id(value): k for k, value in enumerate(variables)}
    offsets = {place.name: place.offset for place in packing.places}

    def encode(operand: Any) -> int:
        if operand is None:
            return ABSENT
        if isinstance(operand, Value):
            return number[id(operand)]
        return operand if isinstance(operand, int) else offsets[recorder.names[id(operand)]]

    described = []
    for value in variables:
        root, first = views.get(value, (None, 0))
        described.append((value.components, value.columns, encode(root), first))
    assert recorder.geometry is not None
    header = (
        *(FORMAT, len(variables), len(nodes), encode(energy), encode(forces)),
        *(packing.total, packing.hidden, recorder.geometry.radial, recorder.sources, PAD),
    )
    blocks = [(node.op, len(node.operands), *map(encode, node.operands)) for node in nodes]
    return np.array([word for words in (header, *described, *blocks) for word in words], np.int64)


class Variable(NamedTuple):
    """A variable of a program: rows of atoms, or some components of them, with the columns as they are stored."""

    components: int
    columns: int
    root: int  # the variable of which it is a view, or ABSENT
    first: int  # its first column there


def read_code(code: np.ndarray) -> tuple[list[Variable], list[tuple[Op, list[int]]]]:
    """Return the variables of a program, and its blocks with their operands."""
    _, variables, blocks = code[:3].tolist()
    at = HEADER + 4 * variables
    found = [Variable(*map(int, row)) for row in code[HEADER:at].reshape(-1, 4)]
    read: list[tuple[Op, list[int]]] = []
    for _ in range(blocks):
        op, count = code[at : at + 2].tolist()
        read.append((Op(op), code[at + 2 : at + 2 + count].tolist()))
        at += 2 + count
    return found, read


def fold_sums(nodes: list[Node], ends: list[Value]) -> list[Node]:
    """Let a block that can add to what it writes do so, where nobody else reads what it wrote without that."""
    uses = Counter([*(id(value) for node in nodes for value in node.read), *map(id, ends)])
    writers = {id(value): node for node in nodes for value in node.written}
    folded: list[Node] = []
    for node in nodes:
        if node.op == Op.ADD:
            a, b, out = node.operands
            for value, base in ((b, a), (a, b)):  # the later of the two has less to wait for
                writer = writers[id(value)]
                if writer.op in HAS_BASE and writer.operands[-1] is None and uses[id(value)] == 1:
                    operands = [out if each is value else each for each in writer.operands[:-1]]
                    folded = [each for each in folded if each is not writer]
                    node = Node(writer.op, [*operands, base], (out,))
                    break
            writers[id(out)] = node
        folded.append(node)
    return folded


def place_parts(nodes: list[Node], ends: list[Value]) -> tuple[list[Node], dict[Value, tuple[Value, int]]]:
    """Make what is concatenated a view of the whole, or copy what already lies elsewhere; return value -> root, column."""
    views: dict[Value, tuple[Value, int]] = {}
    wholes = {node.written[0] for node in nodes if node.op == Op.CAT}
    placed: list[Node] = []
    for node in nodes:
        if node.op != Op.CAT:
            placed.append(node)
            continue
        *parts, out = node.operands
        first = 0
        for part in parts:
            if part in views or part in wholes or part in ends:
                copy = Value(part.recorder, part.width, like=part)
                placed.append(Node(Op.COPY, [part, copy], (copy,)))
                views[copy] = out, first
            else:
                views[part] = out, first
            first += part.columns
    return placed, views
