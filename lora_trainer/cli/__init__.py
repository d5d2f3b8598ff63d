"""The command line, one module a verb. Each verb has `arguments(parser, out)` and `run(args, out) -> exit status`."""
