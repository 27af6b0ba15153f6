"""What an exported file costs and gains: parity, accuracy, latency and the report."""
