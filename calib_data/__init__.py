"""Images in: sources, preprocessing, and the bundled labelled set."""
