"""Command lines: parse, call one function, print."""
