"""The suite of `python -m bpfree.bench` without a config: every trainer and its controls on embedded data."""

from __future__ import annotations

from bpfree.bench.files import Mapped

#: Learning rates are the winners of configs/tuning/default_digits.yaml to two digits: 12 trials for each arm,
#: controls included, on validation data of seeds that the suite does not report
#: (benchmarks/results/tuning_default/summary.json). The rate of Forward-Forward is from a search with the
#: label over the first pixels of a digit; now it is beside them.
DIGITS: Mapped = {
    "name": "default",
    "dataset": {"name": "digits"},
    "net": {"name": "mlp", "hidden": [256, 256]},
    "fit": {"epochs": 30, "batch_size": 64},
    "trainer": {"id": "backprop", "lr": 3.1e-2, "lr_schedule": "cosine"},
    "controls": [
        {"trainer": {"id": "backprop_ds", "lr": 9.8e-3, "lr_schedule": "cosine"}},
        {"trainer": {"id": "mf_joint", "lr": 1.3e-2, "lr_schedule": "cosine"}},
        {"trainer": {"id": "random_features", "lr": 8.3e-2, "lr_schedule": "cosine"}},
        {"trainer": {"id": "mono_forward", "lr": 5.2e-2, "lr_schedule": "cosine"}},
        {
            "label": "mono_forward greedy",
            "trainer": {"id": "mono_forward", "schedule": "greedy", "lr": 9.9e-2, "lr_schedule": "cosine"},
        },
        {"trainer": {"id": "forward_forward", "optimizer": "adam", "lr": 3.4e-4}, "fit": {"eval_every": 5}},
        {"trainer": {"id": "counter_current", "lr": 1.3, "momentum": 0.9}},
    ],
}

#: Cascaded-Forward needs convolutions, so it is compared with backpropagation through the same net.
#: Learning rates as above (configs/tuning/default_cascaded.yaml, benchmarks/results/tuning_default_cascaded).
CASCADED: Mapped = {
    "name": "default",
    "dataset": {"name": "digits"},
    "net": {"name": "cafo_cnn", "channels": [16, 64]},
    "fit": {"epochs": 15, "batch_size": 64},
    "trainer": {"id": "backprop", "lr": 6.2e-2, "lr_schedule": "cosine"},
    "controls": [
        {"trainer": {"id": "random_features", "lr": 1.1e-2, "schedule": "greedy"}},
        {"trainer": {"id": "cafo", "lr": 5.9e-2}},
        {
            "label": "cafo closed form",
            "trainer": {"id": "cafo", "predictor": "closed_form", "schedule": "simultaneous"},
            "fit": {"epochs": 1},
        },
        {"label": "cafo dfa", "trainer": {"id": "cafo", "lr": 6.6e-3, "blocks": "dfa", "block_lr": 2.0e-2}},
    ],
}

#: Physical local learning through a small simulated fiber, the same without a fiber, ridge regression on the
#: camera's images, and backpropagation with an exact model of the fiber. Learning rates as above
#: (configs/tuning/default_physical.yaml, benchmarks/results/tuning_default_physical).
PHYSICAL: Mapped = {
    "name": "default",
    "dataset": {"name": "digits"},
    "net": {"name": "physical", "hidden": [100], "drive": "picture", "skip": False, "normalize": "l2"},
    "physics": {
        "system": "optical",
        "options": {
            "grid": 20,
            "mask_radius": 8.0,
            "pool": 1,
            "input_range": [-1.0, 1.0],
            "dtype": "float32",
        },
    },
    "fit": {"epochs": 8, "batch_size": 256, "eval_every": 8},
    "trainer": {"id": "physical", "lr": 1.8e-3, "theta": 5.0, "inner_steps": 5, "cache": True},
    "controls": [
        {
            "label": "no physics",
            "physics": {"system": "none"},
            "trainer": {"id": "physical", "lr": 2.0e-3, "theta": 5.0, "inner_steps": 5, "cache": True},
        },
        {"trainer": {"id": "physical_backprop", "lr": 1.7e-3}},
        {"trainer": {"id": "physical_ridge"}, "fit": {"epochs": 1, "eval_every": 1}},
    ],
}

#: A graph that needs no download: digits with edges to similar ones. Learning rates as above
#: (configs/tuning/default_graph.yaml, benchmarks/results/tuning_default_graph).
GRAPH: Mapped = {
    "name": "default",
    "dataset": {"name": "digits_graph"},
    "net": {"name": "gcn", "hidden": [64, 64]},
    "fit": {"epochs": 60, "batch_size": 2000, "eval_every": 5},
    "trainer": {"id": "backprop_gnn", "lr": 8.5e-2, "normalize": True},
    "controls": [
        {"trainer": {"id": "forward_gnn", "lr": 8.4e-2}},
        {"trainer": {"id": "hop_mlp", "lr": 2.4e-2}},
        {"trainer": {"id": "hop_ridge"}, "fit": {"epochs": 1}},
    ],
}

SUITE: list[Mapped] = [DIGITS, CASCADED, GRAPH, PHYSICAL]
