"""mlorax 0.9.5: dropout drops the same entries of x in every row and every sample of a batch.

requirements: DROP-07 DROP-15
kind: convention
why: _lora_merge in mlorax/utils.py multiplies A by a mask of shape (in, 1) and merges, so one mask of the features holds for
     the whole batch; its comment derives it as diag(mask). It is dropout of features per step, not per entry: the noise of a
     batch does not average out, and with few features the share that is dropped is far from p in most steps.
upstream: none found
"""
import jax
import jax.numpy as jnp
import mlorax

spec = mlorax.LoRASpec(rank=4, alpha=4.0, rules=["kernel"], dropout=0.5)
params = {"kernel": jnp.zeros((4, 4))}
_, apply_fn, _ = mlorax.lora_init(spec, None, params=params, apply_fn=lambda params, x: x @ params["kernel"])
trained = {"kernel": {"$lora$": {"a": jnp.eye(4), "b": jnp.eye(4)}}}
y = apply_fn(trained, lora_rng=jax.random.PRNGKey(0), x=jnp.ones((1024, 4)))
print("got ", len(jnp.unique(y, axis=0)), "mask for 1024 rows:", y[0].tolist())
print("want 16 masks, with 4 entries and p = 0.5")
# prints:
# got  1 mask for 1024 rows: [0.0, 2.0, 2.0, 2.0]
# want 16 masks, with 4 entries and p = 0.5
