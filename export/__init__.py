"""The pipeline from a torch model to files that a runtime loads."""
