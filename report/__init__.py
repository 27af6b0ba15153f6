"""Reports of what was measured: report.json, its pages, and comparisons of several."""
