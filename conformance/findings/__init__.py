"""What the suite found in public LoRA implementations: one script for each cause, and FINDINGS.md, which is made of them."""
