"""mlora 0.5.2: state_dict() of a decoder layer gives a pair of dicts of modules, and no dict of tensors.

requirements: TORCH-16
kind: convention
why: The decoder layers of mlora override torch's state_dict with a method of their own, which lists linear layers for its
    functions on adapters. Code that saves or loads any module by state_dict and load_state_dict meets a tuple.
upstream: none found
"""
import inspect

from mlora.models.modeling_llama import LlamaDecoderLayer

given = inspect.signature(LlamaDecoderLayer.state_dict).return_annotation
print("state_dict gives a", given.__origin__.__name__, "of", len(given.__args__))
# prints:
# state_dict gives a tuple of 2
