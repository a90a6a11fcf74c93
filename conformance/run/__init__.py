"""From a plan to a verdict: workers, the search for the smallest failing case, the likely cause, and the self-test."""
