"""What `python -m bpfree.bench` runs without a config: every trainer beside its controls on embedded data."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

#: Learning rates: the best of configs/tuning/digits_mlp.yaml by validation accuracy, the smaller of equals.
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
    ],
}

SUITE: list[Config] = [DIGITS]
