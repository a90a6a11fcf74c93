"""mlorax 0.9.5: in float16 a merge with a large alpha gives infinity where the merged weight is finite.

requirements:
since: MERGE-03
kind: fault
why: _lora_merge in mlorax/utils.py computes jnp.matmul(a, b) * alpha / rank from left to right in the dtype of the weights. The
     product with alpha may pass 65504, the end of float16, before it is divided by the rank. Under jit XLA keeps more digits
     in between, so a training step is right and the merge after it is not. It takes an alpha far above the usual ones.
upstream: none found
"""
import jax
import jax.numpy as jnp
import mlorax

spec = mlorax.LoRASpec(rank=64, alpha=16384.0, rules=["kernel"])
params = {"kernel": jnp.zeros((1, 1), jnp.float16)}
_, apply_fn, merge_fn = mlorax.lora_init(spec, None, params=params, apply_fn=lambda params, x: x @ params["kernel"])
factors = {"kernel": {"$lora$": {"a": jnp.full((1, 64), 0.25, jnp.float16), "b": jnp.full((64, 1), 0.25, jnp.float16)}}}
y = jax.jit(lambda factors, x: apply_fn(factors, x=x))(factors, jnp.ones((1, 1), jnp.float16))
print("y under jit       ", float(y[0, 0]))
print("merged weight got ", float(merge_fn(factors)["kernel"][0, 0]))
print("merged weight want", 0.25 * 0.25 * 64 * 256)
# prints:
# y under jit        1024.0
# merged weight got  inf
# merged weight want 1024.0
