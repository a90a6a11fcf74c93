"""qwix 0.1.8: LoraRule(dropout=…) drops in inference mode too, and model.eval() does not end it.

requirements: FWD-13 DROP-01 DROP-05 DROP-18 STATE-04 STATE-09
kind: fault
why: LoraProvider.dot_general in qwix/_src/providers/lora.py makes nnx.Dropout(rule.dropout, deterministic=False) in every call,
     so nothing that the model is told can switch it off: eval() finds no `deterministic` to set, and without qwix_rngs the call
     raises. A model that was trained with dropout gives random answers when it is used, and again others for the same input.
upstream: none found
"""
import jax.numpy as jnp
import qwix
from flax import nnx

linear = nnx.Linear(4, 4, use_bias=False, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0))
rule = qwix.LoraRule(rank=4, alpha=4.0, dropout=0.5)
x = jnp.ones((1, 4))
model = qwix.apply_lora_to_model(linear, qwix.LoraProvider([rule]), x, rngs=nnx.Rngs(0))
model.set_attributes(qwix_rngs=nnx.Rngs(dropout=0))  # as its tests do: without them a call raises
model.kernel_lora_a[...] = model.kernel_lora_b[...] = jnp.eye(4)
model.eval()
print("got ", model(x)[0].tolist())
print("want", [1.0, 1.0, 1.0, 1.0])
# prints:
# got  [0.0, 2.0, 2.0, 2.0]
# want [1.0, 1.0, 1.0, 1.0]
