"""What a case did to a subject: every call as a trace, and the trace as a script of a few lines."""
