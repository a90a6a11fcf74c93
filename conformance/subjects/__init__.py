"""The built-in subjects, one file each. A file has `NEEDS`, the modules that it imports, and `subject()`. A library that other
people wrote also has `ENVIRONMENT`, the name of an environment in drivers/environments.py. The first line of its docstring is
what `conformance subjects` shows."""
