"""A bundle measured on several machines at once, by Dask distributed."""
