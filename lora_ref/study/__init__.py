"""What is measured with the reference and is not the reference: the comparison of methods, and the papers' parameter counts."""
