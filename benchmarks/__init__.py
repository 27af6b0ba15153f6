"""What the exported files are measured against; see `cpu.py`."""
