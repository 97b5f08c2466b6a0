"""Measurements behind the published figures: one command for each, its result in ``benchmarks/results``.

``claims`` compares with thresholds, ``robustness`` tries to break training, ``profiles`` measures cost.
"""
