"""The registered operators give the numbers of plain PyTorch: values, derivatives, and derivatives of these."""

import itertools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from gnnscale.machine.native_build import OFF, VARIABLE
from gnnscale.models.edges import build_patterns, edge_messages, embed_edges
from gnnscale.models.kernels.chunked import Weights
from gnnscale.models.layers import rms_norm as norm_of_networks
from gnnscale.native import operators
from gnnscale.native.library import open_library
from gnnscale.native.operators import edge_geometry, edge_message_sums, message_sums, rms_norm, silu, sum_rows
from tests.support.native_builds import compiled_sets
from tests.support.structures import CUTOFF

ENOUGH = {torch.float64: 1e-12, torch.float32: 5e-6}  # of the largest number of each result, or of 1
WIDTHS = (1, 5, 16, 40)
# Receivers and senders of graphs of a few atoms; the random one has more edges than a tile, and its atoms 0, 3, 6 have none.
GRAPHS = ("one edge", "no edges", "few edges", "many edges")
MESSAGES = (message_sums, edge_message_sums)


@pytest.fixture(params=[*compiled_sets(), OFF])
def native(request, monkeypatch):
    """Run the test with every build that this processor can run, and without any."""
    monkeypatch.setenv(VARIABLE, request.param)
    return request.param


def graph(kind):
    """Return the number of atoms, receivers and senders."""
    if kind in ("one edge", "no edges"):
        one = torch.tensor([1])[: kind == "one edge"]
        return 3, one, one * 2
    random = torch.Generator().manual_seed(3)
    atoms, edges = 8, 9 if kind == "few edges" else 500
    receivers = torch.tensor([1, 2, 4, 5, 7])[torch.randint(5, (edges,), generator=random)].sort().values
    return atoms, receivers, torch.randint(atoms, (edges,), generator=random)


def randoms(*shapes, dtype=torch.float64, seed=0):
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=random, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def message_operands(function, kind, width, radial=8, dtype=torch.float64):
    atoms, receivers, senders = graph(kind)
    shapes = [(atoms, 2 * width), (len(receivers), radial), (4, len(receivers)), (width, radial)]
    if function is edge_message_sums:
        shapes += [(width, width), (width,)]
    operands = randoms(*shapes, dtype=dtype)
    with torch.no_grad():
        for weight in (x for x in operands[3:] if x.dim() == 2):  # as a network's
            weight /= weight.shape[1] ** 0.5
    return operands, (receivers, senders)


def vectors(edges, dtype=torch.float64):
    """Return vectors of lengths from 0.8 Angstrom to beyond the cutoff."""
    (v,) = randoms((edges, 3))
    lengths = torch.linspace(0.8, 1.02 * CUTOFF, edges, dtype=torch.float64)[:, None]
    return (v.detach() / v.detach().norm(dim=1, keepdim=True) * lengths).to(dtype).requires_grad_()


def all_orders(function, operands, others):
    """Return what a function gives, derivatives by its operands, and those of both together by all that they depend on."""
    as_tuple = lambda y: (y,) if isinstance(y, torch.Tensor) else tuple(y)  # noqa: E731
    results = as_tuple(function(*operands, *others))
    g = [x.to(operands[0].dtype) for x in randoms(*(y.shape for y in results), seed=1)]
    g = [x.detach().requires_grad_() for x in g]
    first = torch.autograd.grad(
        sum((y * x).sum() for y, x in zip(results, g, strict=True)), operands, create_graph=True
    )
    u = randoms(*(x.shape for x in operands), seed=2)
    loss = sum((y.double() ** 2).sum() for y in results)
    loss = loss + sum((x * t.to(x.dtype)).sum().double() for x, t in zip(first, u, strict=True))
    second = torch.autograd.grad(loss, [*g, *operands])
    return [x.detach() for x in (*results, *first, *second)]


def compare(function, operands, others):
    """Compare an operator with its formula, which is differentiated in float64."""
    exact = [x.detach().double().requires_grad_() for x in operands]
    dtype = operands[0].dtype
    expected = all_orders(function.__wrapped__, exact, others)
    for k, (a, b) in enumerate(zip(all_orders(function, operands, others), expected, strict=True)):
        assert a.dtype == dtype and a.shape == b.shape
        if b.numel():
            assert (a - b).abs().max() <= ENOUGH[dtype] * max(1, b.abs().max()), k


@pytest.mark.parametrize("dtype", ENOUGH, ids=str)
@pytest.mark.parametrize(("kind", "width"), itertools.product(GRAPHS, WIDTHS))
@pytest.mark.parametrize("function", MESSAGES, ids=lambda f: f.__name__)
def test_messages_are_those_of_the_formula(native, function, kind, width, dtype):
    compare(function, *message_operands(function, kind, width, dtype=dtype))


@pytest.mark.parametrize("radial", [1, 6, 11])
@pytest.mark.parametrize("function", MESSAGES, ids=lambda f: f.__name__)
def test_there_may_be_any_number_of_radial_functions(native, function, radial):
    compare(function, *message_operands(function, "many edges", 20, radial))


@pytest.mark.parametrize("dtype", ENOUGH, ids=str)
@pytest.mark.parametrize("edges", [0, 1, 7, 300])
@pytest.mark.parametrize("radial", [1, 8])
def test_geometry_is_that_of_the_formula(native, edges, radial, dtype):
    compare(edge_geometry, [vectors(edges, dtype)], (CUTOFF, radial, 0.3))


@pytest.mark.parametrize("dtype", ENOUGH, ids=str)
@pytest.mark.parametrize("shape", [(0, 4), (1, 1), (3, 5), (2, 3, 16), (7, 40)], ids=str)
@pytest.mark.parametrize("function", [silu, rms_norm], ids=lambda f: f.__name__)
def test_rows_are_those_of_the_formula(native, function, shape, dtype):
    compare(function, randoms(shape, dtype=dtype), ())


@pytest.mark.parametrize("dtype", ENOUGH, ids=str)
@pytest.mark.parametrize("shape", [(0, 4), (6, 1), (6, 2, 5), (6,)], ids=str)
def test_rows_are_summed_by_any_index(native, shape, dtype):
    (x,) = randoms(shape, dtype=dtype)
    index = torch.tensor([3, 0, 3, 1, 0, 3])[: shape[0]]
    found = sum_rows(x, index, 5)
    assert torch.allclose(found, torch.zeros(5, *shape[1:], dtype=dtype).index_add(0, index, x), atol=1e-6)
    assert found.dtype == dtype and not found[2].any()
    loss = torch.autograd.grad((found**3).sum(), x, create_graph=True)[0].square().sum()
    other = torch.zeros(5, *shape[1:], dtype=dtype).index_add(0, index, x)
    expected = torch.autograd.grad((other**3).sum(), x, create_graph=True)[0].square().sum()
    assert torch.allclose(*(torch.autograd.grad(each, x)[0] for each in (loss, expected)), rtol=1e-5)


# ---------------------------------------------------------------------------------------- without any formula of our own
def small(function):
    if function in MESSAGES:
        return message_operands(function, "few edges", 3, 2)
    if function is edge_geometry:
        return [vectors(5)], (CUTOFF, 3, 0.3)
    if function is sum_rows:
        return randoms((4, 3)), (torch.tensor([2, 0, 2, 2]), 4)
    return randoms((3, 5)), ()


every_operator = pytest.mark.parametrize(
    "function",
    [*MESSAGES, edge_geometry, silu, rms_norm, sum_rows],
    ids=lambda f: getattr(f, "__name__", "sum_rows"),
)


@every_operator
def test_both_derivatives_are_those_of_differences(native, function):
    operands, others = small(function)

    def call(*x):
        return function(*x, *others)

    assert gradcheck(call, operands)
    assert gradgradcheck(call, operands)


def arguments_of_all_orders(function):
    """Yield each registered operator behind a function, and arguments."""
    operands, others = small(function)
    name = "sum_rows" if function is sum_rows else function.__name__
    yield getattr(torch.ops.gnnscale, name).default, (*operands, *others)
    if function is sum_rows:
        return
    made = function(*operands, *others)
    by = randoms(*(y.shape for y in ((made,) if isinstance(made, torch.Tensor) else made)), seed=1)
    u = [x.detach() for x in randoms(*(x.shape for x in operands), seed=2)]
    for wanted in ([True] * len(operands), [k % 3 == 0 for k in range(len(operands))]):
        yield getattr(torch.ops.gnnscale, f"{name}_backward").default, (*by, *operands, *others, wanted)
        plain = [x.detach() for x in (*by, *operands)]
        yield getattr(torch.ops.gnnscale, f"{name}_double_backward").default, (*u, *plain, *others, wanted)


@pytest.mark.filterwarnings("ignore")  # of PyTorch about itself
@every_operator
def test_registrations_are_complete(instruction_set, function):
    for op, arguments in arguments_of_all_orders(function):
        opcheck(op, arguments)


@every_operator
def test_a_registered_operator_works_without_the_library(monkeypatch, function):
    monkeypatch.setenv(VARIABLE, OFF)
    operands, others = small(function)
    if function is sum_rows:
        return
    registered = getattr(torch.ops.gnnscale, function.__name__)
    for a, b in zip(*(all_orders(f, operands, others) for f in (registered, function)), strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-13)


def test_messages_and_geometry_are_those_of_egnn(native):
    atoms, receivers, senders = graph("many edges")
    v, (table, radial, second, bias, mix) = vectors(500), randoms((atoms, 40), (20, 8), (20, 20), (20,), (6, 20))
    graphs = type("Graphs", (), {"receivers": receivers, "senders": senders, "numbers": torch.zeros(atoms)})
    edges = embed_edges(v, CUTOFF, 8, torch.tensor(0.3, dtype=torch.float64), build_patterns(graphs))
    basis, scale = edge_geometry(v, CUTOFF, 8, 0.3)
    assert torch.allclose(basis, edges.basis, rtol=0, atol=1e-12) and torch.allclose(
        scale, edges.scale, rtol=0, atol=1e-12
    )
    plain, whole = (table, basis, scale, radial), (table, basis, scale, radial, second, bias)
    for weights, found in (
        (Weights(radial, None, None, mix), message_sums(*plain, receivers, senders)),
        (Weights(radial, second, bias, mix), edge_message_sums(*whole, receivers, senders)),
    ):
        s, moments = edge_messages(table, weights, edges)
        assert torch.allclose(found[0], s, atol=1e-12) and torch.allclose(found[1:] @ mix.t(), moments, atol=1e-12)


def test_the_norm_is_that_of_networks(native):
    (x,) = randoms((6, 24))
    assert torch.allclose(rms_norm(x), norm_of_networks(x), rtol=1e-13)


# ---------------------------------------------------------------------------------------------------------------- the rest
@pytest.mark.parametrize("function", MESSAGES, ids=lambda f: f.__name__)
def test_the_same_call_gives_the_same_bits(instruction_set, function):
    operands, others = message_operands(function, "many edges", 40, dtype=torch.float32)
    once, again = (all_orders(function, operands, others) for _ in range(2))
    assert all(map(torch.equal, once, again))


@pytest.mark.parametrize("function", MESSAGES, ids=lambda f: f.__name__)
def test_nothing_of_edges_and_channels_is_kept_for_the_derivatives(instruction_set, function):
    operands, others = message_operands(function, "many edges", 64)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        made = function(*operands, *others)
        torch.autograd.grad(made.square().sum(), operands, create_graph=True)
    assert kept and max(kept) <= max(x.numel() for x in (*operands, made)) < 500 * 64


@pytest.mark.parametrize("function", MESSAGES, ids=lambda f: f.__name__)
def test_what_would_read_beyond_an_array_is_refused(instruction_set, function):
    operands, (receivers, senders) = message_operands(function, "few edges", 5)
    for i, j in (
        (receivers.flip(0), senders),
        (receivers, senders + 1),
        (receivers, -senders),
        (receivers + 8, senders),
    ):
        with pytest.raises(IndexError, match="below the number of atoms, 8"):
            function(*operands, i, j)
    for k in range(len(operands)):
        cut = [x[..., :-1] if q == k else x for q, x in enumerate(operands)]
        with pytest.raises(ValueError, match="operands of messages have the shapes"):
            function(*cut, receivers, senders)
    with pytest.raises(IndexError, match="below the number of sums, 2"):
        sum_rows(operands[0], torch.arange(8), 2)


def test_a_third_derivative_is_refused():
    (x,) = randoms((3, 5))
    g = torch.autograd.grad(silu(x).sum(), x, create_graph=True)[0]
    h = torch.autograd.grad(g.sum(), x, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="silu can be differentiated twice, not three times"):
        torch.autograd.grad(h.sum(), x)


def test_a_compiled_model_may_use_them(native):
    """torch.compile takes an operator as it is, without looking inside."""
    operands, others = message_operands(message_sums, "few edges", 16)
    whole = torch.compile(lambda *x: message_sums(*x, *others).square().sum(), fullgraph=True, backend="aot_eager")
    found, expected = whole(*operands), message_sums(*operands, *others).square().sum()
    assert torch.equal(found, expected)
    for a, b in zip(*(torch.autograd.grad(y, operands) for y in (found, expected)), strict=True):
        assert torch.equal(a, b)


def test_other_precisions_are_left_to_pytorch():
    x = torch.randn(3, 5).bfloat16()
    assert torch.equal(silu(x), torch.nn.functional.silu(x))
    assert open_library(torch.bfloat16) is None
    assert operators.find_library([x.float(), x]) is None
