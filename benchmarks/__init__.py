"""Scripts that make a published figure again: one command each, results beside them."""
