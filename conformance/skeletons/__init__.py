"""The files that `conformance init` writes: a Python subject, and programs in C, JavaScript and Python."""
