"""jax-lorax 0.3.0: in float16 and bfloat16 a merge rounds three times: scale times B, times A, and the sum.

requirements: DTYPE-07
kind: convention
why: LoraWeight.materialize in lorax/transform.py computes w + scale * b @ a in the dtype of the weights, and every step rounds.
     The merged weight, which is what is shipped, loses up to as much again as by the one rounding that cannot be helped.
upstream: none found
"""
import jax.numpy as jnp
import lorax

w, a, b = (jnp.array([[number]], jnp.bfloat16) for number in (-2.0, 1.78125, 1.125))
params = {"kernel": lorax.LoraWeight(w=w, a=a, b=b, alpha=1.0)}
print("got ", float(lorax.merge_params(params, destructive=False)["kernel"][0, 0]))
print("want", -2.0 + 1.78125 * 1.125)
# prints:
# got  0.0
# want 0.00390625
