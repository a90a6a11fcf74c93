"""jax-lorax 0.3.0: the gradient of a model, taken as its README does, holds that of every frozen weight.

requirements: GRAD-10
kind: convention
why: a LoraWeight (lorax/transform.py) is a pytree of w, a and b, and the README differentiates with respect to all of it;
     wrap_optimizer then leaves w alone. That is its design, and under jit XLA may drop what the update does not use. Where
     gradients leave the compiled step, to be added up or to have their norm taken, that of each frozen weight is among them.
upstream: none found
"""
import jax
import jax.numpy as jnp
import lorax


def model(params, x):
    return jnp.sum(x @ params["kernel"])


params = {"kernel": jnp.ones((2, 3))}
spec = lorax.simple_spec(params, decision_fn=lambda path, parameter: 1)
lora_params = lorax.init_lora(params, spec, jax.random.PRNGKey(0))
_, gradient = jax.value_and_grad(lorax.lora(model))(lora_params, jnp.ones((4, 2)))
print("got ", gradient["kernel"].w.tolist())
print("want None, or zeros")
# prints:
# got  [[4.0, 4.0, 4.0], [4.0, 4.0, 4.0]]
# want None, or zeros
