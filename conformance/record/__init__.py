"""Records every call of a case to a subject, and writes the calls as a script of a few lines."""
