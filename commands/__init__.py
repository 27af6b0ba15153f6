"""The commands: parse, call, print. Nothing else knows of the terminal."""
