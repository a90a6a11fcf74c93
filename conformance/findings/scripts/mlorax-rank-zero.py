"""mlorax 0.9.5: a rank of 0 gives NaN instead of an error or the base model.

requirements: INPUT-03
kind: fault
why: _lora_merge in mlorax/utils.py divides by the rank without a look at it: jnp.matmul(a, b) * alpha / rank is 0 / 0, which
     JAX computes without complaint. The whole model gives NaN from the first step, and nothing says why.
upstream: none found
"""
import jax.numpy as jnp
import mlorax

spec = mlorax.LoRASpec(rank=0, alpha=4.0, rules=["kernel"])
params = {"kernel": jnp.ones((2, 1))}
trained, apply_fn, _ = mlorax.lora_init(spec, None, params=params, apply_fn=lambda params, x: x @ params["kernel"])
print("got ", apply_fn(trained, x=jnp.ones((1, 2))).tolist())
print("want [[2.0]] or an error")
# prints:
# got  [[nan]]
# want [[2.0]] or an error
