"""Random examples are the same in every run, unless HYPOTHESIS_PROFILE=deep asks for more and new ones."""

import os

import pytest
import torch
from hypothesis import settings

from tests import corpus

settings.register_profile("fast", max_examples=25, derandomize=True, deadline=None, database=None)
settings.register_profile("deep", max_examples=500, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """convert/NAME -> directory, of two small datasets."""
    return corpus.convert(tmp_path_factory.mktemp("corpus"))
