"""What is right, and how far an honest answer may be off: cases, their truth from lora_ref, and the comparison."""
