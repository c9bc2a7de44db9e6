"""The command line: one module a verb, its arguments and its body together."""
