"""`python -m bpfree.tune`: the settings of a method and of its controls, searched with the same budget."""
