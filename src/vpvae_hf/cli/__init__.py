"""The command line: one module per command, which is imported when the command runs; `parser` declares them all."""
