"""What an exported file costs and gains: parity, accuracy, latency and the report."""

import cmt  # noqa: F401 - keeps the runtimes' usage reports out, before one is imported
