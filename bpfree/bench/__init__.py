"""`python -m bpfree.bench`: cells of (trainer, data set, net, seed), measured and written down."""
