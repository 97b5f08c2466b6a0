#!/usr/bin/env bash
# torch-geometric 2.8.1: transforms.RandomLinkSplit with is_undirected=True.
# Guess: torch.manual_seed fixes the split, and the order of the two ends of a pair is independent of its label.
# Behavior: the negative pairs follow Python's `random`, so they differ between runs with the same torch seed. And every
# edge is listed with the smaller node first, while negative pairs have any order: the rule "first end smaller" alone
# classifies about three quarters of the pairs correctly.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.3.4 torch-geometric==2.8.1
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import random

import torch
import torch_geometric
from torch_geometric.data import Data
from torch_geometric.transforms import RandomLinkSplit

n = 500
edges = torch.randint(n, (2, 3000), generator=torch.Generator().manual_seed(0))
edges = torch.unique(torch.cat([edges, edges.flip(0)], 1), dim=1)
edges = edges[:, edges[0] != edges[1]]


def split(seed):
    torch.manual_seed(0)
    random.seed(seed)
    return RandomLinkSplit(num_val=0.1, num_test=0.2, is_undirected=True)(Data(edge_index=edges, num_nodes=n))[2]


first, again, other = split(0), split(0), split(1)
positive = first.edge_label == 1
assert torch.equal(first.edge_label_index, again.edge_label_index)
assert torch.equal(first.edge_label_index[:, positive], other.edge_label_index[:, positive])
assert not torch.equal(first.edge_label_index[:, ~positive], other.edge_label_index[:, ~positive])
ordered = first.edge_label_index[0] < first.edge_label_index[1]
share = (ordered == positive).float().mean().item()
print("edges in ascending order:", ordered[positive].float().mean().item())
print("negative pairs in ascending order:", round(ordered[~positive].float().mean().item(), 3))
print("classified correctly by the order alone:", round(share, 3))
assert ordered[positive].all() and 0.65 < share < 0.85
print("as described, torch-geometric", torch_geometric.__version__)
PYTHON
