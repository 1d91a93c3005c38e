"""Predictions of the compiled library are those of PyTorch, in physical units and for whatever a batch may hold."""

import pytest
import torch

from gnnscale.inference.native_potential import NativePotential, use_library
from gnnscale.models.potential import Potential, predict
from gnnscale.native.library import open_library, reason_not_available
from tests.gnnscale.models.test_compiled import every_network, mixture, network

needs_library = pytest.mark.skipif(open_library(torch.float64) is None, reason=reason_not_available())


@needs_library
@every_network
def test_predictions_in_physical_units(options):
    potential, graphs = network(options), mixture()
    predictor, words = use_library(potential)
    assert isinstance(predictor, NativePotential) and "native" in words
    stress = potential.gradient
    for found, expected in zip(predict(predictor, graphs, stress), predict(potential, graphs, stress), strict=True):
        assert (found is None) == (expected is None)
        if found is not None and expected is not None:
            torch.testing.assert_close(found, expected.detach(), rtol=1e-10, atol=1e-10, equal_nan=True)


@needs_library
def test_direct_forces_have_no_stress():
    predictor, _ = use_library(network({"width": 8, "depth": 1, "forces": "direct"}))
    with pytest.raises(ValueError, match="forces = 'direct' has no stress"):
        predictor(mixture(), stress=True)


def test_a_network_that_the_library_cannot_serve_predicts_by_pytorch(monkeypatch):
    paper, words = use_library(network({"form": "paper", "width": 8, "depth": 1, "forces": "direct"}))
    assert isinstance(paper, Potential) and words.startswith("PyTorch (")
    monkeypatch.setenv("GNNSCALE_NATIVE", "0")
    off, words = use_library(network({"width": 8, "depth": 1}))
    assert isinstance(off, Potential) and "switched off" in words
