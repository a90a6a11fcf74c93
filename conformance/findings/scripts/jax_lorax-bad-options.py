"""jax-lorax 0.3.0: init_lora takes an alpha that is not a number.

requirements: INPUT-05
kind: convention
why: init_lora in lorax/helpers.py hands alpha on as it is, and LoraWeight.get_scale in lorax/transform.py divides it by the
     rank. With NaN a fresh adapter, which adds nothing, gives NaN in place of the model's output.
upstream: none found
"""
import jax
import jax.numpy as jnp
import lorax

params = {"kernel": jnp.ones((2, 1))}
spec = lorax.simple_spec(params, decision_fn=lambda path, parameter: 1)
lora_params = lorax.init_lora(params, spec, jax.random.PRNGKey(0), alpha=float("nan"))
print("got ", lorax.lora(lambda params, x: x @ params["kernel"])(lora_params, jnp.ones((1, 2))).tolist())
print("want an error")
# prints:
# got  [[nan]]
# want an error
