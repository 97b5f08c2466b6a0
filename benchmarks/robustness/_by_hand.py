"""The rules of the trainers as plain PyTorch loops over full batches, without bpfree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = Mapping[str, Tensor]
#: Class scores ``[N, C]`` of samples ``[N, ...]``.
Scores = Callable[[Tensor], Tensor]


@dataclass
class Net:
    """A network and the indices at which its blocks begin.

    Attributes:
        layers: All layers in the order in which they run; a layer may occur more than once.
        starts: Index of the first layer of each block and of the output layer.
    """

    layers: Sequence[nn.Module]
    starts: Sequence[int]

    @property
    def stages(self) -> list[nn.Sequential]:
        """The layers of each block."""
        ends = zip(self.starts[:-1], self.starts[1:], strict=True)
        return [_row(self.layers[a:b]) for a, b in ends]

    @property
    def output(self) -> nn.Sequential:
        """The output layer."""
        return _row(self.layers[self.starts[-1] :])


def _row(layers: Iterable[nn.Module]) -> nn.Sequential:
    return nn.Sequential(*layers)


@dataclass
class Result:
    """The result of a loop: class scores, and the losses of each epoch, lowest block first."""

    scores: Scores
    losses: list[list[float]] = field(default_factory=list)


def adam(parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
    """Adam over the parameters that require gradients; there may be none."""
    return torch.optim.Adam([{"params": [p for p in parameters if p.requires_grad]}], lr=lr)


def _take(optimizers: Sequence[torch.optim.Optimizer], loss: Tensor) -> float:
    for optimizer in optimizers:
        optimizer.zero_grad()
    if loss.requires_grad:
        loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    return loss.item()


def _matrices(state: State, prefix: str) -> list[Tensor]:
    """The tensors of ``state`` under ``prefix``, matrices first."""
    tensors = [v for k, v in state.items() if k.startswith(prefix)]
    return sorted(tensors, key=lambda v: -v.ndim)


def heads(state: State, count: int, prefix: str = "blocks.{}.loss.head.") -> list[nn.Linear]:
    """Copies of the local heads of the first ``count`` blocks, from the state of a trainer."""
    copies = []
    for k in range(count):
        weight, *bias = _matrices(state, prefix.format(k))
        head = nn.Linear(weight.shape[1], weight.shape[0], bias=bool(bias))
        with torch.no_grad():
            head.weight.copy_(weight)
            if bias:
                head.bias.copy_(bias[0])
        copies.append(head)
    return copies


def network_scores(net: Net) -> Scores:
    """The output of the network in evaluation mode."""

    def scores(x: Tensor) -> Tensor:
        with torch.no_grad():
            for layer in net.layers:
                x = layer.eval()(x)
        return x

    return scores


def backprop(net: Net, state: State, x: Tensor, y: Tensor, epochs: int, lr: float) -> Result:
    """Backpropagation of one loss through all layers."""
    model = _row(dict.fromkeys(net.layers))
    optimizer, losses = adam(model.parameters(), lr), []
    for _ in range(epochs):
        model.train()
        rows = x
        for layer in net.layers:
            rows = layer(rows)
        losses.append([_take([optimizer], F.cross_entropy(rows, y))])
    return Result(network_scores(net), losses)


def mono_forward(
    net: Net,
    state: State,
    x: Tensor,
    y: Tensor,
    epochs: int,
    lr: float,
    make: Callable[[Iterable[Tensor], float], torch.optim.Optimizer] = adam,
    readout: str = "last",
    pool: int | None = None,
) -> Result:
    """Cross-entropy for each block and its head; the output layer is the head of the last block.

    Args:
        net, state, x, y, epochs, lr: As in `backprop`.
        make: Creates an optimizer.
        readout: ``last``, ``sum`` (of the scores) or ``probabilities`` (their sum).
        pool: Size to which maps are averaged before a head.
    """
    stages = net.stages
    own_heads: list[nn.Module] = [*heads(state, len(stages) - 1), net.output]
    optimizers = [
        make([*s.parameters(), *h.parameters()], lr) for s, h in zip(stages, own_heads, strict=True)
    ]

    def scores_of(k: int, out: Tensor) -> Tensor:
        if k == len(stages) - 1:
            return own_heads[k](out)  # type: ignore[no-any-return]
        pooled = out if pool is None else F.adaptive_avg_pool2d(out, pool)
        return own_heads[k](pooled.flatten(1))  # type: ignore[no-any-return]

    losses = []
    for _ in range(epochs):
        rows, step_losses = x, []
        for k, stage in enumerate(stages):
            out = stage.train()(rows)
            step_losses.append(_take([optimizers[k]], F.cross_entropy(scores_of(k, out), y)))
            rows = out.detach()
        losses.append(step_losses)

    @torch.no_grad()
    def summed(x: Tensor) -> Tensor:
        terms = []
        for k, stage in enumerate(stages):
            x = stage.eval()(x)
            terms.append(scores_of(k, x) if readout == "sum" else scores_of(k, x).softmax(1))
        return torch.stack(terms).sum(0)

    return Result(network_scores(net) if readout == "last" else summed, losses)


def greedy(net: Net, state: State, x: Tensor, y: Tensor, epochs: int, lr: float) -> Result:
    """Mono-Forward, greedy: one block after another."""
    stages, rows, losses = net.stages, x, []
    own_heads: list[nn.Module] = [*heads(state, len(stages) - 1), net.output]
    for k, (stage, head) in enumerate(zip(stages, own_heads, strict=True)):
        optimizer = adam([*stage.parameters(), *head.parameters()], lr)
        for _ in range(epochs):
            out = stage.train()(rows)
            scores = head(out if k == len(stages) - 1 else out.flatten(1))
            losses.append([_take([optimizer], F.cross_entropy(scores, y))])
        with torch.no_grad():
            rows = stage.eval()(rows)
    return Result(network_scores(net), losses)


def _supervised(
    net: Net, own_heads: Sequence[nn.Module], x: Tensor, y: Tensor, epochs: int, lr: float
) -> Result:
    stages = net.stages
    parts = [*stages, *own_heads]
    optimizer, losses = adam(dict.fromkeys(p for part in parts for p in part.parameters()), lr), []
    for _ in range(epochs):
        rows, step_losses = x, []
        for k, head in enumerate(own_heads):
            rows = stages[k].train()(rows) if k < len(stages) else rows
            step_losses.append(F.cross_entropy(head(rows if k == len(own_heads) - 1 else rows.flatten(1)), y))
        _take([optimizer], torch.stack(step_losses).sum())
        losses.append([loss.item() for loss in step_losses])
    return Result(network_scores(net), losses)


def deep_supervision(net: Net, state: State, x: Tensor, y: Tensor, epochs: int, lr: float) -> Result:
    """Deep supervision: a head on every block, one backward pass of the sum of all losses."""
    own_heads = heads(state, len(net.stages), "blocks.0.blocks.{}.loss.head.")
    return _supervised(net, [*own_heads, net.output], x, y, epochs, lr)


def mf_joint(net: Net, state: State, x: Tensor, y: Tensor, epochs: int, lr: float) -> Result:
    """The losses of Mono-Forward, one backward pass of their sum."""
    own_heads = heads(state, len(net.stages) - 1, "blocks.0.blocks.{}.loss.head.")
    return _supervised(net, [*own_heads, net.output], x, y, epochs, lr)


def random_features(net: Net, state: State, x: Tensor, y: Tensor, epochs: int, lr: float) -> Result:
    """The heads of Mono-Forward on blocks that are not trained."""
    for stage in net.stages:
        stage.requires_grad_(False)
    return mono_forward(net, state, x, y, epochs, lr)


def dfa(net: Net, state: State, x: Tensor, y: Tensor, epochs: int, lr: float) -> Result:
    """Direct feedback alignment: the output error times a fixed random matrix for each block but the last."""
    stages, output = net.stages, net.output
    optimizer, losses = adam([p for part in [*stages, output] for p in part.parameters()], lr), []
    for _ in range(epochs):
        rows, outputs = x, []
        for stage in stages:
            outputs.append(stage.train()(rows))
            rows = outputs[-1].detach()
        scores = output(outputs[-1])
        error = scores.detach().softmax(1) - F.one_hot(y, scores.shape[1])
        matrices = [state[f"blocks.0.blocks.{k}.loss.matrix"] for k in range(len(stages) - 1)]
        pairs = zip(outputs[:-1], matrices, strict=True)
        step_losses = [(out.flatten(1) * (error @ matrix / len(y))).sum() for out, matrix in pairs]
        step_losses.append(F.cross_entropy(scores, y))
        _take([optimizer], torch.stack(step_losses).sum())
        losses.append([loss.item() for loss in step_losses])
    return Result(network_scores(net), losses)


def _features(net: Net, x: Tensor) -> list[Tensor]:
    """Flattened outputs of the blocks, in evaluation mode."""
    outputs = []
    with torch.no_grad():
        for stage in net.stages:
            x = stage.eval()(x)
            outputs.append(x.flatten(1))
    return outputs


def cafo(net: Net, state: State, x: Tensor, y: Tensor, epochs: int, lr: float) -> Result:
    """A linear predictor with cross-entropy on each random block, one after another."""
    own_heads, losses = heads(state, len(net.stages)), []
    for head, rows in zip(own_heads, _features(net, x), strict=True):
        optimizer = adam(head.parameters(), lr)
        losses += [[_take([optimizer], F.cross_entropy(head(rows), y))] for _ in range(epochs)]

    def scores(x: Tensor) -> Tensor:
        with torch.no_grad():
            parts = zip(own_heads, _features(net, x), strict=True)
            return torch.stack([head(rows).softmax(1) for head, rows in parts]).sum(0)

    return Result(scores, losses)


def ridge(features: Tensor, y: Tensor, classes: int, lam: float) -> tuple[Tensor, Tensor]:
    """Weights ``[d, C]`` and intercepts ``[C]`` of ridge regression, by `torch.linalg.lstsq`.

    The penalty is ``lam`` times the mean square of the features; the intercept has none.
    """
    phi = features.double()
    penalty = lam * phi.square().sum() / phi.shape[1]
    rows = torch.cat([phi, torch.ones(len(phi), 1, dtype=torch.float64)], 1)
    extra = torch.cat([torch.eye(phi.shape[1]), torch.zeros(phi.shape[1], 1)], 1).double() * penalty.sqrt()
    target = torch.cat([F.one_hot(y, classes).double(), torch.zeros(phi.shape[1], classes).double()])
    solution = torch.linalg.lstsq(torch.cat([rows, extra]), target, driver="gelsd").solution
    return solution[:-1], solution[-1]


def cafo_closed_form(net: Net, x: Tensor, y: Tensor, classes: int, lam: float) -> Result:
    """A ridge regression on each random block; the scores are the sum of the softmax of theirs."""
    solved = [ridge(rows, y, classes, lam) for rows in _features(net, x)]

    def scores(x: Tensor) -> Tensor:
        parts = zip(solved, _features(net, x), strict=True)
        return torch.stack([(r.double() @ w + b).softmax(1) for (w, b), r in parts]).sum(0).float()

    return Result(scores)


def _clipped(parameters: Iterable[Tensor]) -> None:
    nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], 1.0)


def counter_current(net: Net, state: State, x: Tensor, y: Tensor, epochs: int, lr: float) -> Result:
    """Counter-current learning of an MLP with the dot loss between each block and its feedback layer."""
    stages, output, feedback = net.stages, net.output, []
    for k in range(len(stages)):
        weight, *bias = _matrices(state, f"blocks.{k}.loss.feedback.")
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bool(bias))
        with torch.no_grad():
            layer.weight.copy_(weight)
            if bias:
                layer.bias.copy_(bias[0])
        feedback.append(layer)
    n_classes, losses = int(state[f"blocks.{len(stages)}.loss.head.weight"].shape[0]), []
    code = F.one_hot(y, n_classes).float()
    for _ in range(epochs):
        message, prototypes = torch.eye(n_classes), []
        for back in reversed(feedback):
            prototypes.append(back(message).relu())
            message = prototypes[-1].detach()
        rows, step_losses = x, []
        for stage, back, b in zip(stages, feedback, reversed(prototypes), strict=True):
            out = stage.train()(rows)
            loss = 256 * 0.5 / out.shape[1] * (out @ b.T - code).square().mean()
            step_losses.append(_descend(loss, [stage, back], lr))
            rows = out.detach()
        step_losses.append(_descend(F.cross_entropy(output(rows), y), [output], lr))
        losses.append(step_losses)
    return Result(network_scores(net), losses)


def _descend(loss: Tensor, parts: Sequence[nn.Module], lr: float) -> float:
    """A step of gradient descent; the gradient of each part is clipped to a norm of 1."""
    for part in parts:
        part.zero_grad()
    loss.backward()
    with torch.no_grad():
        for part in parts:
            _clipped(part.parameters())
            for p in part.parameters():
                if p.grad is not None:
                    p.sub_(lr * p.grad)
    return loss.item()


class _StraightThrough(torch.autograd.Function):
    """ReLU whose gradient is the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.relu()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def _unit(rows: Tensor) -> Tensor:
    """Rows divided by their root mean square."""
    return rows / (rows.square().mean(1, keepdim=True).sqrt() + 1e-8)


def _overlaid(x: Tensor, code: Tensor) -> Tensor:
    rows = x.flatten(1).clone()
    rows[:, : code.shape[1]] = code
    return rows


def forward_forward(state: State, readout: str, x: Tensor, y: Tensor, epochs: int, lr: float) -> Result:
    """Forward-Forward of an MLP with two layers and two classes, with the default settings.

    With two classes there is one wrong label, so that no negative sample is random.
    """
    layers = [
        (state[f"blocks.{k}.body.{layer}.weight"], state[f"blocks.{k}.body.{layer}.bias"])
        for k, layer in _layer_names(state)
    ]
    weights = [[p.clone().requires_grad_() for p in layer] for layer in layers]
    means = [torch.full((len(w),), 0.5) for w, _ in weights]
    top = torch.zeros(2, len(weights[1][0]), requires_grad=True)
    optimizers = [torch.optim.SGD(layer, lr, momentum=0.9, weight_decay=3e-4) for layer in weights]
    readout_optimizer = torch.optim.SGD([top], 1e-2, momentum=0.9, weight_decay=3e-3)

    def run(k: int, rows: Tensor) -> Tensor:
        w, b = weights[k]
        out: Tensor = _StraightThrough.apply(_unit(rows) @ w.T + b)
        return out

    def classified(x: Tensor) -> Tensor:
        with torch.no_grad():
            rows = run(1, run(0, _overlaid(x, torch.full((1, 2), 0.5))))
        return _unit(rows) @ top.T

    def goodness(x: Tensor) -> Tensor:
        with torch.no_grad():
            sums = [run(1, run(0, _overlaid(x, code[None]))).square().sum(1) for code in torch.eye(2)]
        return torch.stack(sums, 1)

    losses, target = [], torch.cat([torch.ones(len(y)), torch.zeros(len(y))])
    for _ in range(epochs):
        readout_loss = _take([readout_optimizer], F.cross_entropy(classified(x), y))
        rows, step_losses = torch.cat([_overlaid(x, F.one_hot(label, 2).float()) for label in (y, 1 - y)]), []
        for k in range(2):
            out = run(k, rows)
            loss = F.binary_cross_entropy_with_logits(out.square().sum(1) - out.shape[1], target)
            mean = 0.9 * means[k] + 0.1 * out[: len(y)].mean(0)
            step_losses.append(_take([optimizers[k]], loss + 0.03 * (mean.mean() - mean).square().mean()))
            means[k], rows = mean.detach(), out.detach()
        losses.append([*step_losses, readout_loss])
    return Result(goodness if readout == "goodness" else lambda x: classified(x).detach(), losses)


def _layer_names(state: State) -> list[tuple[int, str]]:
    """Block index and name of the two layers in the state of a trainer."""
    names = sorted(name for name in state if ".body." in name and name.endswith(".weight"))
    return [(k, name.split(".body.")[1].removesuffix(".weight")) for k, name in enumerate(names)]


#: The loop of each trainer of ordinary networks that takes steps and uses no random numbers.
LOOPS: dict[str, Callable[[Net, State, Tensor, Tensor, int, float], Result]] = {
    "backprop": backprop,
    "backprop_ds": deep_supervision,
    "mf_joint": mf_joint,
    "mono_forward": mono_forward,
    "local": mono_forward,
    "random_features": random_features,
    "dfa": dfa,
    "cafo": cafo,
    "counter_current": counter_current,
}
