"""Ordinary and odd inputs for every trainer: right, refused before training, or warned about.

    python -m benchmarks.robustness.never_silent

`_case` says what a case is and `_judge` what became of it; `_by_hand` trains the same networks in plain
PyTorch, to compare with. The other modules hold the cases, one kind each.
"""
