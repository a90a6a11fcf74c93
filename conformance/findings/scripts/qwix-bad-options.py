"""qwix 0.1.8: LoraRule takes an alpha that is not a number, and a dropout below 0.

requirements: INPUT-05 INPUT-06
kind: convention
why: LoraRule in qwix/_src/providers/lora.py is a dataclass that looks at none of its values. Scaled by alpha = NaN a fresh
     adapter, which adds nothing, gives NaN in place of the model's output; a negative dropout is taken for none
     (`if rule.dropout > 0`). A mistake in a configuration is found out late, or never.
upstream: none found
"""
import jax.numpy as jnp
import qwix
from flax import nnx

x = jnp.ones((1, 2))


def fresh(**options):
    linear = nnx.Linear(2, 1, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0))
    rule = qwix.LoraRule(rank=1, **options)
    return qwix.apply_lora_to_model(linear, qwix.LoraProvider([rule]), x, rngs=nnx.Rngs(0))


print("got  alpha = nan:", fresh(alpha=float("nan"))(x).tolist())
print("got  dropout = -0.1:", fresh(alpha=1.0, dropout=-0.1)(x).tolist())
print("want an error, twice")
# prints:
# got  alpha = nan: [[nan]]
# got  dropout = -0.1: [[2.0]]
# want an error, twice
