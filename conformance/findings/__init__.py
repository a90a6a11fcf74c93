"""What the suite found in the world's LoRA implementations: one script for each cause, and the page made of them."""
