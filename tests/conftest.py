"""Before anything imports Triton, or torch what imports it: without a GPU its kernels run in its interpreter. And the tests of
every folder may import small_models and pages, under every one of pytest's import modes."""

import os
import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parent))

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
