"""INT8: what is quantised (recipe) and how it is put into the graph."""
