"""One file per command. Each has HELP, `declare(parser)`, which adds its arguments, and `run(arguments)`: an exit status."""
