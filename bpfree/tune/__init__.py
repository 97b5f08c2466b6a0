"""`python -m bpfree.tune`: searches the settings of a method and of its controls with the same budget."""
