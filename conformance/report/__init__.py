"""Writes reports of runs, of the self-test and of benchmarks, SPEC.md, and all other generated text."""
