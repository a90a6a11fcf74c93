"""mlorax 0.9.5: in float16 and bfloat16 the division by the rank is rounded, so that a scale of 4 is 3.998.

requirements: DROP-17 DROP-18
kind: convention
why: mlorax multiplies by alpha and divides by the rank in the format of the layer, and XLA makes a product with the rounded
    reciprocal of it. Where the rank is no power of two, as 203 here, the scale is off by a rounding, which these two
    requirements do not allow where everything else is exact. Elsewhere the suite allows it.
upstream: none found
"""
import jax
import jax.numpy as jnp

print("812 / 203 in float16:", float(jax.jit(lambda x: x * 812.0 / 203.0)(jnp.ones((), jnp.float16))))
# prints:
# 812 / 203 in float16: 3.998046875
