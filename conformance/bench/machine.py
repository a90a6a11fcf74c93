"""Describes the machine as JSON on the terminal: versions, the GPU, and the settings that decide how it rounds.

    python -m conformance.bench.machine cuda
"""

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec

import torch

SECONDS = 10.0  # for nvidia-smi


def environment(device: str) -> dict:
    """Versions, hardware and settings that affect numbers and speed."""
    cuda, matmul = device == "cuda", torch.backends.cuda.matmul
    gpu = torch.cuda.get_device_properties(0) if cuda else None
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version,name,power.limit,clocks.max.sm", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, timeout=SECONDS).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        driver = f"not known: {type(error).__name__}"
    versions = {name: metadata.version(name) if find_spec(name) else None for name in ("numpy", "triton", "peft", "loralib")}
    return {
        "device": gpu.name if gpu else f"cpu, {platform.machine()}", "python": platform.python_version(),
        "platform": platform.platform(), "torch": torch.__version__, **versions,
        "cuda runtime of torch": torch.version.cuda, "driver, by nvidia-smi": driver,
        "capability": f"{gpu.major}.{gpu.minor}" if gpu else None, "memory in bytes": gpu.total_memory if gpu else None,
        "devices": torch.cuda.device_count(), "cudnn": torch.backends.cudnn.version(),
        "cuda.matmul.allow_tf32": matmul.allow_tf32, "cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "allow_fp16_reduced_precision_reduction": matmul.allow_fp16_reduced_precision_reduction,
        "allow_bf16_reduced_precision_reduction": matmul.allow_bf16_reduced_precision_reduction,
        "variables": {name: os.environ[name] for name in sorted(os.environ)
                      if name.startswith(("CUDA", "CUBLAS", "NVIDIA_TF32", "TORCH", "PYTORCH", "TRITON"))},
    }


if __name__ == "__main__":
    print(json.dumps(environment(sys.argv[1]), indent=1))
