"""The commands, one file each: HELP, `declare(parser)`, which adds the arguments, and `run(arguments)`, which gives the exit
status."""
