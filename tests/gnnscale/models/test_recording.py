"""A network's forward pass becomes a program, or a reason in words why it cannot; parameters go into one array and back."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gnnscale.models.egnn import EGNNLayer
from gnnscale.models.layers import rms_norm
from gnnscale.models.potential import find_hidden_matrices
from gnnscale.models.recording import Op, Program, record
from gnnscale.models.registry import build
from gnnscale.native.packing import PAD, Packing, Place, Span
from tests.support.architectures import make_config
from tests.support.structures import CUTOFF


def make(sources: int = 2, **options):
    torch.manual_seed(0)
    potential = build(make_config({"width": 16, "depth": 2, "cutoff": CUTOFF} | options), sources, 12.0)
    for p in potential.parameters():
        p.data += torch.randn_like(p)
    return potential


def blocks_of(potential) -> list[tuple[str, list[int]]]:
    """Return name and operands of each block."""
    program = record(potential)
    assert isinstance(program, Program), program
    code = program.code.tolist()
    at, found = 10 + 4 * code[1], []
    while at < len(code):
        found.append((Op(code[at]).name, code[at + 2 : at + 2 + code[at + 1]]))
        at += 2 + code[at + 1]
    assert len(found) == code[2]
    return found


LAYER = ["NORM", "LINEAR", "MESSAGES", "LINEAR", "LINEAR", "SILU", "LENGTH", "LINEAR", "SILU", "LINEAR", "SCALE"]


@pytest.mark.parametrize("forces", ["direct", "gradient"])
def test_the_program_is_as_short_as_the_network(forces):
    """Sums cost no block of their own, and what is concatenated is written to its place."""
    names = [name for name, _ in blocks_of(make(forces=forces))]
    second = [*LAYER[:3], *LAYER[4:6], "LINEAR", *LAYER[6:]]  # there the new vectors are added to the old ones
    readout = ["NORM", "LINEAR", "SILU", "LINEAR", *(["DIRECT"] if forces == "direct" else [])]
    assert names == ["EMBED", "EMBED", *LAYER, *second, *readout]


def test_a_layer_of_moments_has_three_blocks_more():
    """Besides the matrix of its tensors, a layer has their lengths and the contraction."""
    blocks = blocks_of(make(kind="moments", forces="gradient"))
    names = [name for name, _ in blocks]
    matrices = ["LINEAR", "SILU", "LINEAR", "LINEAR"]  # the second matrix, and those of vectors and tensors
    layer = ["NORM", "LINEAR", "MOMENT_MESSAGES", *matrices, "LENGTH", "LENGTH", "CONTRACTION", *LAYER[7:]]
    assert names == ["EMBED", "EMBED", *layer, *layer, "NORM", "LINEAR", "SILU", "LINEAR"]
    seen = [operands[5:] for name, operands in blocks if name == "MOMENT_MESSAGES"]
    assert seen[0] == [-1, -1, -1, 0] and seen[1][-1] == 2, "the first layer has nothing to see"


def test_the_second_matrix_is_part_of_the_messages_of_the_form_edge():
    names = [name for name, _ in blocks_of(make(form="edge", source_heads=True))]
    assert names.count("EDGE_MESSAGES") == 2 and "MESSAGES" not in names and "SOURCE_LINEAR" in names


def test_a_part_that_lies_elsewhere_is_copied(monkeypatch):
    def forward(self, h, vectors, edges):
        h, vectors = plain(self, h, vectors, edges)
        x = rms_norm(h)
        return h + self.narrow(torch.cat((x, x), dim=1)), vectors

    plain = EGNNLayer.forward
    potential = make(depth=1)
    potential.backbone.layers[0].narrow = nn.Linear(32, 16, bias=False)
    monkeypatch.setattr(EGNNLayer, "forward", forward)
    assert [name for name, _ in blocks_of(potential)].count("COPY") == 1


@pytest.mark.parametrize("width", [1, 8, 20, 30, 64])
@pytest.mark.parametrize(
    "options", [{}, {"form": "edge", "source_heads": True}, {"kind": "moments"}], ids=["plain", "heads", "moments"]
)
def test_parameters_go_into_one_array_and_back(width, options):
    potential = make(sources=4, width=width, **options)
    packing, parameters = record(potential).packing, dict(potential.named_parameters())
    flat = packing.pack(parameters, torch.float64)
    assert [place.name for place in packing.places] == list(parameters)
    for name, values in packing.unpack(flat):
        assert torch.equal(values, parameters[name].double()), name
    assert packing.total == len(flat) and packing.total % PAD == 0
    assert int((flat != 0).sum()) == sum(p.numel() for p in parameters.values()), "all else is zero"
    hidden = sum(matrix.numel() for matrix in find_hidden_matrices(potential))
    assert int((flat[: packing.hidden] != 0).sum()) == hidden, "hidden matrices come first"


def test_a_place_is_made_of_groups_and_may_be_a_transpose():
    place = Place("x", (2, 3), (Span.exact(1), Span.exact(1)), (Span.padded(1), Span.exact(2)), offset=16)
    flat, values = torch.zeros(64), torch.arange(1.0, 7).view(2, 3)
    place.put(flat, values)
    assert flat[16:52].nonzero()[:, 0].tolist() == [0, 16, 17, 18, 34, 35]
    assert torch.equal(place.take(flat), values)
    turned = Place("x", (3, 2), place.rows, place.columns, transposed=True, offset=16)
    assert torch.equal(turned.take(flat), values.T)
    arranged = Packing.arrange({"a": place, "b": turned}, {"b"})
    assert [each.offset for each in arranged.places] == [48, 0] and arranged.hidden == 48 and arranged.total == 96


# ----------------------------------------------------------------------------------------------------- no program
def change_layer(change):
    def forward(self, h, vectors, edges, plain=EGNNLayer.forward):
        h, vectors = plain(self, h, vectors, edges)
        return change(self, h), vectors

    return forward


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda layer, h: torch.tanh(h), "there is no block for tanh"),
        (lambda layer, h: h.relu(), "it asks a tensor for relu"),
        (lambda layer, h: F.silu(h) * h, "multiplies what is no value and one number"),
        (lambda layer, h: h * layer.step, "two blocks use backbone.layers.0.step"),
        (lambda layer, h: h * torch.ones(16), "a tensor that is none of its parameters"),
        (lambda layer, h: h + 1, "it adds what are no two values"),
        (lambda layer, h: h[:, :4], "it takes parts of"),
        (lambda layer, h: h - h, "TypeError"),
        (lambda layer, h: torch.cat((h, h)), "it concatenates"),
        (lambda layer, h: h if h.shape[1] == 16 else 0 / 0, ""),
    ],
)
def test_what_has_no_block_is_named(change, reason, monkeypatch):
    monkeypatch.setattr(EGNNLayer, "forward", change_layer(change))
    found = record(make(depth=1))
    assert (reason in found) if reason else not isinstance(found, str)


def test_the_network_of_the_paper_has_no_program():
    assert record(make(form="paper")) == "there is no block for linalg_vector_norm"


def test_a_parameter_that_nobody_uses_is_named():
    potential = make()
    potential.backbone.left_over = nn.Parameter(torch.ones(3))
    assert record(potential) == "no block uses backbone.left_over"


def test_results_that_are_no_values_are_refused(monkeypatch):
    potential = make()
    for energy in (None, torch.ones(3)):
        monkeypatch.setattr(type(potential.backbone), "forward", lambda *_, energy=energy: (energy, None))
        assert isinstance(record(potential), str)
