"""Cases, the right answers to them (from lora_ref), the bounds on rounding errors, and the comparison of arrays."""
