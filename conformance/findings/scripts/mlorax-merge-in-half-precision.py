"""mlorax 0.9.5: in float16 and bfloat16 a merge rounds four times: A B, times alpha, over the rank, and the sum.

requirements: DTYPE-07
kind: convention
why: _lora_merge in mlorax/utils.py computes jnp.matmul(a, b) * alpha / rank + weight in the dtype of the weights, and every
     step rounds. The merged weight, which is what is shipped, loses up to as much again as by the one rounding that cannot be
     helped.
upstream: none found
"""
import jax
import jax.numpy as jnp
import mlorax

jax.config.update("jax_enable_x64", True)
dtype = jnp.bfloat16
spec = mlorax.LoRASpec(rank=3, alpha=1.0, rules=["kernel"])
params = {"kernel": jnp.array([[-1.0]], dtype)}
_, _, merge_fn = mlorax.lora_init(spec, None, params=params, apply_fn=lambda params, x: x @ params["kernel"])
A, B = jnp.array([[1.75, 0.0, 0.0]], dtype), jnp.array([[1.6640625], [0.0], [0.0]], dtype)
exact = A.astype(float) @ B.astype(float) / 3 - 1
print("got ", float(merge_fn({"kernel": {"$lora$": {"a": A, "b": B}}})["kernel"][0, 0]))
print("want", float(exact.astype(dtype)[0, 0]))
# prints:
# got  -0.03125
# want -0.029296875
