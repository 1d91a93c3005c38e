"""Random examples are the same in every run, unless HYPOTHESIS_PROFILE=deep asks for more and new ones."""

import os

import torch
from hypothesis import settings

settings.register_profile("fast", max_examples=25, derandomize=True, deadline=None, database=None)
settings.register_profile("deep", max_examples=500, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))

torch.set_num_threads(1)
