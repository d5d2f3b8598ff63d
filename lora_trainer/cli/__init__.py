"""The command line, one module per verb. Each has `add_arguments(parser, console)` and `run(args, console) -> exit status`."""
