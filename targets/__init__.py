"""Runtimes that files are built for and run by: one file or folder each, one row each."""

import cmt  # noqa: F401 - keeps the runtimes' usage reports out, before one is imported
