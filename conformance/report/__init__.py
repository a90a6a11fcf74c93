"""What a run has to say: on the terminal, as JSON, as JUnit."""
