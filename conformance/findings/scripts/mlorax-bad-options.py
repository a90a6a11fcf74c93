"""mlorax 0.9.5: LoRASpec takes an alpha that is not a number, and a dropout below 0.

requirements: INPUT-05 INPUT-06
kind: convention
why: LoRASpec in mlorax/utils.py is a dataclass that looks at none of its values. With alpha = NaN a fresh adapter, which adds
     nothing, gives NaN in place of the model's output; a negative dropout is taken for none (`lora_spec.dropout > 0.0`).
upstream: none found
"""
import jax
import jax.numpy as jnp
import mlorax


def fresh(**options):
    spec = mlorax.LoRASpec(rank=1, rules=["kernel"], **options)
    params = {"kernel": jnp.ones((2, 1))}
    trained, apply_fn, _ = mlorax.lora_init(spec, None, params=params, apply_fn=lambda params, x: x @ params["kernel"])
    return apply_fn(trained, lora_rng=jax.random.PRNGKey(0), x=jnp.ones((1, 2)))


print("got  alpha = nan:", fresh(alpha=float("nan")).tolist())
print("got  dropout = -0.1:", fresh(dropout=-0.1).tolist())
print("want an error, twice")
# prints:
# got  alpha = nan: [[nan]]
# got  dropout = -0.1: [[2.0]]
# want an error, twice
