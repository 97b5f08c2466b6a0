"""Ordinary and odd inputs for every trainer: right, refused before training, or warned about.

    python -m benchmarks.robustness.never_silent

`_case` defines a case and `_verdict` runs it; `_by_hand` trains the same networks in plain PyTorch for
comparison. The other modules define the cases, one kind each. ``kill_rows``, ``kill_resume``, ``kill_tune``
kill running benches and searches; ``same_bits`` compares two revisions.
"""
