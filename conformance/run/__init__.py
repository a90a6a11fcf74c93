"""Runs the requirements and decides the verdict: workers, the search for a small failing case, its cause, the self-test."""
