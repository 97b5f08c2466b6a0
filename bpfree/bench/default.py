"""What `python -m bpfree.bench` runs without a config: every trainer beside its controls on embedded data."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

#: Learning rates: the best of configs/tuning/digits_mlp.yaml by validation accuracy, the smaller of equals.
#: That of counter-current learning from {0.1, 0.2, 0.5, 1} without momentum and 0.5 with it, by hand.
DIGITS: Config = {
    "name": "default",
    "dataset": {"name": "digits"},
    "net": {"name": "mlp", "hidden": [256, 256]},
    "fit": {"epochs": 30, "batch_size": 64},
    "trainer": {"id": "backprop", "lr": 5e-3, "lr_schedule": "cosine"},
    "controls": [
        {"trainer": {"id": "backprop_ds", "lr": 1e-3, "lr_schedule": "cosine"}},
        {"trainer": {"id": "mf_joint", "lr": 5e-3, "lr_schedule": "cosine"}},
        {"trainer": {"id": "random_features", "lr": 3e-2, "lr_schedule": "cosine"}},
        {"trainer": {"id": "mono_forward", "lr": 1e-3, "lr_schedule": "cosine"}},
        {
            "label": "mono_forward greedy",
            "trainer": {"id": "mono_forward", "schedule": "greedy", "lr": 5e-3, "lr_schedule": "cosine"},
        },
        {"trainer": {"id": "forward_forward", "optimizer": "adam", "lr": 1e-3}, "fit": {"eval_every": 5}},
        {"trainer": {"id": "counter_current", "lr": 0.5, "momentum": 0.9}},
        {
            "label": "counter_current analytic",
            "trainer": {"id": "counter_current", "lr": 0.5, "momentum": 0.9, "gradients": "analytic"},
        },
    ],
}

#: Cascaded-Forward lives on convolutions, so it stands beside backpropagation through the same ones. The
#: learning rates here were chosen by hand.
CASCADED: Config = {
    "name": "default",
    "dataset": {"name": "digits"},
    "net": {"name": "cafo_cnn", "channels": [16, 64]},
    "fit": {"epochs": 15, "batch_size": 64},
    "trainer": {"id": "backprop", "lr": 5e-3, "lr_schedule": "cosine"},
    "controls": [
        {"trainer": {"id": "random_features", "lr": 1e-2, "schedule": "greedy"}},
        {"trainer": {"id": "cafo", "lr": 1e-2}},
        {
            "label": "cafo closed form",
            "trainer": {"id": "cafo", "predictor": "closed_form", "schedule": "simultaneous"},
            "fit": {"epochs": 1},
        },
        {"label": "cafo dfa", "trainer": {"id": "cafo", "lr": 1e-2, "blocks": "dfa", "block_lr": 2e-3}},
    ],
}

#: A graph that needs no download: digits joined to those like them. The learning rates were chosen by hand.
GRAPH: Config = {
    "name": "default",
    "dataset": {"name": "digits_graph"},
    "net": {"name": "gcn", "hidden": [64, 64]},
    "fit": {"epochs": 60, "batch_size": 2000, "eval_every": 5},
    "trainer": {"id": "backprop_gnn", "lr": 1e-2, "normalize": True},
    "controls": [
        {"trainer": {"id": "forward_gnn", "lr": 1e-2}},
        {"trainer": {"id": "hop_mlp", "lr": 1e-2}},
        {"trainer": {"id": "hop_ridge"}, "fit": {"epochs": 1}},
    ],
}

SUITE: list[Config] = [DIGITS, CASCADED, GRAPH]
