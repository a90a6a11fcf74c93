"""Settings that must be made before torch and Triton are imported: one thread for each process, because arrays are small and
every core already runs a process; and Triton's interpreter where there is no GPU. The tests of every folder can import
small_models and pages, in every import mode of pytest."""

import os
import sys
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import torch  # noqa: E402 reads them when it is imported

sys.path.append(str(Path(__file__).parent))

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
