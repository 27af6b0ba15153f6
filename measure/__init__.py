"""What an exported file costs and gains: parity, accuracy and latency, on any machine."""

import cmt  # noqa: F401 - keeps the runtimes' usage reports out, before one is imported
