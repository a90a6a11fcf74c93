"""Lets the tests of this folder import torch_layers and torch_models in every import mode of pytest."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
