"""A bundle: one folder that holds all of an export, checked before anything is read from it."""
