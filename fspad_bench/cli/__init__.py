"""The command line: one module per verb, holding its arguments and its body."""
