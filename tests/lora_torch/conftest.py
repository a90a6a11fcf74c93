"""Lets the tests beside it import torch_layers under every one of pytest's import modes."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
