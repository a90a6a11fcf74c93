"""What every run tries, and what HYPOTHESIS_PROFILE=thorough tries, too."""

import os
from collections.abc import Iterable
from typing import Any

import pytest

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


def few(values: Iterable[Any], of: int = 3) -> list[Any]:
    """The values as parameters of a test. Every run tries one value in `of`, and the thorough profile tries all."""
    return [pytest.param(value, marks=[pytest.mark.thorough] if number % of else []) for number, value in enumerate(values)]
