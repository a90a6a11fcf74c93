"""loralib 0.1.2: a negative rank is accepted and gives a layer without LoRA.

requirements: INPUT-02
kind: fault
why: Linear (layers.py) makes its factors where r > 0 and treats every other r as off. 0 is the usual sign for that; a
    rank that is mistyped trains nothing, and no one is told.
upstream: none found
"""
import loralib


def made(r):
    return loralib.Linear(3, 2, r=r, lora_alpha=1.0, lora_dropout=0.0)


try:
    print("got ", "parameters of LoRA:", sum(p.numel() for name, p in made(-1).named_parameters() if "lora_" in name))
except ValueError as error:
    print("got ", error)
print("want an error")
# prints:
# got  parameters of LoRA: 0
# want an error
