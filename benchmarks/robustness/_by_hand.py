"""The trainers' rules as plain loops in PyTorch, on whole batches; nothing of bpfree computes here."""

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
    """A network, and where its author says that its blocks begin.

    Attributes:
        layers: All layers in the order in which they run; the same layer may stand there more than once.
        starts: First layer of each block, and of the output layer.
    """

    layers: Sequence[nn.Module]
    starts: Sequence[int]

    @property
    def stages(self) -> list[nn.Sequential]:
        """The blocks' layers."""
        ends = zip(self.starts[:-1], self.starts[1:], strict=True)
        return [_row(self.layers[a:b]) for a, b in ends]

    @property
    def output(self) -> nn.Sequential:
        """The output layer."""
        return _row(self.layers[self.starts[-1] :])


def _row(layers: Iterable[nn.Module]) -> nn.Sequential:
    return nn.Sequential(*layers)


@dataclass
class Found:
    """What a loop has come to: class scores, and the losses of each epoch, bottom first."""

    scores: Scores
    losses: list[list[float]] = field(default_factory=list)


def adam(parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
    """Adam over those that learn; None of them is fine."""
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
    """The tensors of a part of a trainer's state, by the order of their names, those with two axes first."""
    found = [v for k, v in state.items() if k.startswith(prefix)]
    return sorted(found, key=lambda v: -v.ndim)


def heads(state: State, count: int, prefix: str = "blocks.{}.loss.head.") -> list[nn.Linear]:
    """Copies of the local heads of the first ``count`` blocks, out of a trainer's state."""
    made = []
    for k in range(count):
        weight, *bias = _matrices(state, prefix.format(k))
        head = nn.Linear(weight.shape[1], weight.shape[0], bias=bool(bias))
        with torch.no_grad():
            head.weight.copy_(weight)
            if bias:
                head.bias.copy_(bias[0])
        made.append(head)
    return made


def whole(net: Net) -> Scores:
    """The network itself, in evaluation mode."""

    def scores(x: Tensor) -> Tensor:
        with torch.no_grad():
            for layer in net.layers:
                x = layer.eval()(x)
        return x

    return scores


def backprop(net: Net, state: State, x: Tensor, y: Tensor, epochs: int, lr: float) -> Found:
    """One loss, one backward pass."""
    model = _row(dict.fromkeys(net.layers))
    optimizer, losses = adam(model.parameters(), lr), []
    for _ in range(epochs):
        model.train()
        rows = x
        for layer in net.layers:
            rows = layer(rows)
        losses.append([_take([optimizer], F.cross_entropy(rows, y))])
    return Found(whole(net), losses)


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
) -> Found:
    """Each block and its head by their own cross-entropy; the output layer heads the last block.

    Args:
        net, state, x, y, epochs, lr: As of the others.
        make: Makes an optimizer.
        readout: ``last``; ``sum`` of scores; ``probabilities``, their sum.
        pool: Side to which maps are averaged in front of a head.
    """
    stages = net.stages
    own: list[nn.Module] = [*heads(state, len(stages) - 1), net.output]
    optimizers = [make([*s.parameters(), *h.parameters()], lr) for s, h in zip(stages, own, strict=True)]

    def scores_of(k: int, out: Tensor) -> Tensor:
        if k == len(stages) - 1:
            return own[k](out)  # type: ignore[no-any-return]
        pooled = out if pool is None else F.adaptive_avg_pool2d(out, pool)
        return own[k](pooled.flatten(1))  # type: ignore[no-any-return]

    losses = []
    for _ in range(epochs):
        rows, told = x, []
        for k, stage in enumerate(stages):
            out = stage.train()(rows)
            told.append(_take([optimizers[k]], F.cross_entropy(scores_of(k, out), y)))
            rows = out.detach()
        losses.append(told)

    @torch.no_grad()
    def summed(x: Tensor) -> Tensor:
        found = []
        for k, stage in enumerate(stages):
            x = stage.eval()(x)
            found.append(scores_of(k, x) if readout == "sum" else scores_of(k, x).softmax(1))
        return torch.stack(found).sum(0)

    return Found(whole(net) if readout == "last" else summed, losses)


def greedy(net: Net, state: State, x: Tensor, y: Tensor, epochs: int, lr: float) -> Found:
    """Mono-Forward, one block after another."""
    stages, rows, losses = net.stages, x, []
    own: list[nn.Module] = [*heads(state, len(stages) - 1), net.output]
    for k, (stage, head) in enumerate(zip(stages, own, strict=True)):
        optimizer = adam([*stage.parameters(), *head.parameters()], lr)
        for _ in range(epochs):
            out = stage.train()(rows)
            scores = head(out if k == len(stages) - 1 else out.flatten(1))
            losses.append([_take([optimizer], F.cross_entropy(scores, y))])
        with torch.no_grad():
            rows = stage.eval()(rows)
    return Found(whole(net), losses)


def _supervised(net: Net, own: Sequence[nn.Module], x: Tensor, y: Tensor, epochs: int, lr: float) -> Found:
    stages = net.stages
    parts = [*stages, *own]
    optimizer, losses = adam(dict.fromkeys(p for part in parts for p in part.parameters()), lr), []
    for _ in range(epochs):
        rows, told = x, []
        for k, head in enumerate(own):
            rows = stages[k].train()(rows) if k < len(stages) else rows
            told.append(F.cross_entropy(head(rows if k == len(own) - 1 else rows.flatten(1)), y))
        _take([optimizer], torch.stack(told).sum())
        losses.append([loss.item() for loss in told])
    return Found(whole(net), losses)


def deep_supervision(net: Net, state: State, x: Tensor, y: Tensor, epochs: int, lr: float) -> Found:
    """A head on every block and the output layer above, one backward pass through the sum."""
    own = heads(state, len(net.stages), "blocks.0.blocks.{}.loss.head.")
    return _supervised(net, [*own, net.output], x, y, epochs, lr)


def mf_joint(net: Net, state: State, x: Tensor, y: Tensor, epochs: int, lr: float) -> Found:
    """Mono-Forward's losses under one backward pass."""
    own = heads(state, len(net.stages) - 1, "blocks.0.blocks.{}.loss.head.")
    return _supervised(net, [*own, net.output], x, y, epochs, lr)


def random_features(net: Net, state: State, x: Tensor, y: Tensor, epochs: int, lr: float) -> Found:
    """Mono-Forward's heads alone; the blocks stay as they are."""
    for stage in net.stages:
        stage.requires_grad_(False)
    return mono_forward(net, state, x, y, epochs, lr)


def dfa(net: Net, state: State, x: Tensor, y: Tensor, epochs: int, lr: float) -> Found:
    """The output's error through a fixed random matrix to each block; the last one gets its gradient."""
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
        pulls = zip(outputs[:-1], matrices, strict=True)
        told = [(out.flatten(1) * (error @ matrix / len(y))).sum() for out, matrix in pulls]
        told.append(F.cross_entropy(scores, y))
        _take([optimizer], torch.stack(told).sum())
        losses.append([loss.item() for loss in told])
    return Found(whole(net), losses)


def _features(net: Net, x: Tensor) -> list[Tensor]:
    """Flattened outputs of the blocks, in evaluation mode."""
    found = []
    with torch.no_grad():
        for stage in net.stages:
            x = stage.eval()(x)
            found.append(x.flatten(1))
    return found


def cafo(net: Net, state: State, x: Tensor, y: Tensor, epochs: int, lr: float) -> Found:
    """A linear predictor on each random block by cross-entropy, one after another."""
    own, losses = heads(state, len(net.stages)), []
    for head, rows in zip(own, _features(net, x), strict=True):
        optimizer = adam(head.parameters(), lr)
        losses += [[_take([optimizer], F.cross_entropy(head(rows), y))] for _ in range(epochs)]

    def scores(x: Tensor) -> Tensor:
        with torch.no_grad():
            parts = zip(own, _features(net, x), strict=True)
            return torch.stack([head(rows).softmax(1) for head, rows in parts]).sum(0)

    return Found(scores, losses)


def ridge(features: Tensor, y: Tensor, classes: int, lam: float) -> tuple[Tensor, Tensor]:
    """Weights ``[d, C]`` and intercepts ``[C]`` of least squares, by `lstsq` on the rows and the penalty's.

    The penalty is ``lam`` times the mean square of the features, and spares the intercept.
    """
    phi = features.double()
    penalty = lam * phi.square().sum() / phi.shape[1]
    rows = torch.cat([phi, torch.ones(len(phi), 1, dtype=torch.float64)], 1)
    extra = torch.cat([torch.eye(phi.shape[1]), torch.zeros(phi.shape[1], 1)], 1).double() * penalty.sqrt()
    target = torch.cat([F.one_hot(y, classes).double(), torch.zeros(phi.shape[1], classes).double()])
    found = torch.linalg.lstsq(torch.cat([rows, extra]), target, driver="gelsd").solution
    return found[:-1], found[-1]


def cafo_closed_form(net: Net, x: Tensor, y: Tensor, classes: int, lam: float) -> Found:
    """A ridge regression on each random block; the sum of the softmax of their scores."""
    solved = [ridge(rows, y, classes, lam) for rows in _features(net, x)]

    def scores(x: Tensor) -> Tensor:
        parts = zip(solved, _features(net, x), strict=True)
        return torch.stack([(r.double() @ w + b).softmax(1) for (w, b), r in parts]).sum(0).float()

    return Found(scores)


def _clipped(parameters: Iterable[Tensor]) -> None:
    nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], 1.0)


def counter_current(net: Net, state: State, x: Tensor, y: Tensor, epochs: int, lr: float) -> Found:
    """Perceptrons with the dot loss: each block and the feedback layer that answers it agree on classes."""
    stages, output, feedback = net.stages, net.output, []
    for k in range(len(stages)):
        weight, *bias = _matrices(state, f"blocks.{k}.loss.feedback.")
        made = nn.Linear(weight.shape[1], weight.shape[0], bias=bool(bias))
        with torch.no_grad():
            made.weight.copy_(weight)
            if bias:
                made.bias.copy_(bias[0])
        feedback.append(made)
    n_classes, losses = int(state[f"blocks.{len(stages)}.loss.head.weight"].shape[0]), []
    code = F.one_hot(y, n_classes).float()
    for _ in range(epochs):
        message, prototypes = torch.eye(n_classes), []
        for back in reversed(feedback):
            prototypes.append(back(message).relu())
            message = prototypes[-1].detach()
        rows, told = x, []
        for stage, back, b in zip(stages, feedback, reversed(prototypes), strict=True):
            out = stage.train()(rows)
            loss = 256 * 0.5 / out.shape[1] * (out @ b.T - code).square().mean()
            told.append(_descend(loss, [stage, back], lr))
            rows = out.detach()
        told.append(_descend(F.cross_entropy(output(rows), y), [output], lr))
        losses.append(told)
    return Found(whole(net), losses)


def _descend(loss: Tensor, parts: Sequence[nn.Module], lr: float) -> float:
    """A step of gradient descent; each part's gradient has a norm of at most 1."""
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
    """ReLU, of which the gradient is the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.relu()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def _unit(rows: Tensor) -> Tensor:
    """Rows divided by the root of their mean square."""
    return rows / (rows.square().mean(1, keepdim=True).sqrt() + 1e-8)


def _overlaid(x: Tensor, code: Tensor) -> Tensor:
    rows = x.flatten(1).clone()
    rows[:, : code.shape[1]] = code
    return rows


def forward_forward(state: State, readout: str, x: Tensor, y: Tensor, epochs: int, lr: float) -> Found:
    """Perceptrons of two layers and two classes, where the wrong label is no draw; the default settings."""
    layers = [
        (state[f"blocks.{k}.body.{at}.weight"], state[f"blocks.{k}.body.{at}.bias"])
        for k, at in _places(state)
    ]
    weights = [[p.clone().requires_grad_() for p in layer] for layer in layers]
    means = [torch.full((len(w),), 0.5) for w, _ in weights]
    top = torch.zeros(2, len(weights[1][0]), requires_grad=True)
    optimizers = [torch.optim.SGD(layer, lr, momentum=0.9, weight_decay=3e-4) for layer in weights]
    judge = torch.optim.SGD([top], 1e-2, momentum=0.9, weight_decay=3e-3)

    def answer(k: int, rows: Tensor) -> Tensor:
        w, b = weights[k]
        out: Tensor = _StraightThrough.apply(_unit(rows) @ w.T + b)
        return out

    def classified(x: Tensor) -> Tensor:
        with torch.no_grad():
            rows = answer(1, answer(0, _overlaid(x, torch.full((1, 2), 0.5))))
        return _unit(rows) @ top.T

    def goodness(x: Tensor) -> Tensor:
        with torch.no_grad():
            own = [answer(1, answer(0, _overlaid(x, code[None]))).square().sum(1) for code in torch.eye(2)]
        return torch.stack(own, 1)

    losses, target = [], torch.cat([torch.ones(len(y)), torch.zeros(len(y))])
    for _ in range(epochs):
        of_judge = _take([judge], F.cross_entropy(classified(x), y))
        rows, told = torch.cat([_overlaid(x, F.one_hot(label, 2).float()) for label in (y, 1 - y)]), []
        for k in range(2):
            out = answer(k, rows)
            loss = F.binary_cross_entropy_with_logits(out.square().sum(1) - out.shape[1], target)
            mean = 0.9 * means[k] + 0.1 * out[: len(y)].mean(0)
            told.append(_take([optimizers[k]], loss + 0.03 * (mean.mean() - mean).square().mean()))
            means[k], rows = mean.detach(), out.detach()
        losses.append([*told, of_judge])
    return Found(goodness if readout == "goodness" else lambda x: classified(x).detach(), losses)


def _places(state: State) -> list[tuple[int, str]]:
    """Where the two layers stand in a trainer's state."""
    names = sorted(name for name in state if ".body." in name and name.endswith(".weight"))
    return [(k, name.split(".body.")[1].removesuffix(".weight")) for k, name in enumerate(names)]


#: A loop for each trainer of ordinary networks that learns by steps and draws nothing.
LOOPS: dict[str, Callable[[Net, State, Tensor, Tensor, int, float], Found]] = {
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
