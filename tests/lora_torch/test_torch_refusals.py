"""LinearLoRA refuses bad arguments and inputs, with a message that names what came and what was expected."""

import math
from typing import Any

import pytest
import torch

from lora_torch import LinearLoRA

GOOD: dict[str, Any] = {"in_features": 6, "out_features": 5, "rank": 2, "alpha": 4}


@pytest.mark.parametrize(
    "name, bad",
    [(name, bad) for name in ("in_features", "out_features", "rank") for bad in (0, -1, 2.0, True, "4", None)]
    + [("alpha", bad) for bad in (math.nan, math.inf, -math.inf, "8", None, True)]
    + [("dropout", bad) for bad in (-0.1, 1, 1.0, 1.5, math.nan, "0", None)]
    + [("scaling", "rsLoRA"), ("scaling", None), ("init", "normal"), ("init", None)]
    + [("bias", torch.zeros(5)), ("bias", None)],
)
def test_a_bad_argument_is_named_with_what_came_and_what_was_expected(name, bad):
    with pytest.raises(ValueError, match=rf"LinearLoRA: {name} is .*, expected .*, because ") as error:
        LinearLoRA(**{**GOOD, name: bad})
    assert repr(bad) in str(error.value)


@pytest.mark.parametrize("shape", [(), (5,), (1,), (3, 1), (6, 5), (2, 6, 0)])
@pytest.mark.parametrize("merged", [False, True])
def test_an_input_of_another_width_is_refused(shape, merged):
    layer = LinearLoRA(**GOOD)
    if merged:
        layer.merge()
    with pytest.raises(ValueError, match=r"LinearLoRA.forward: x is .*, expected \(…, in\) = \(…, 6\), because"):
        layer(torch.zeros(shape))


def test_an_unknown_argument_is_refused():
    with pytest.raises(TypeError):
        LinearLoRA(**{**GOOD, "lora_alpha": 4})
