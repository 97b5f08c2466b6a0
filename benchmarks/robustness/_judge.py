"""What became of a case: right, refused, warned about; silently wrong, or ended by a foreign error."""

from __future__ import annotations

import re
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.optim.optimizer import register_optimizer_step_pre_hook

import bpfree
from benchmarks.robustness._case import Case, Outcome
from bpfree.physics import DeviceError

PACKAGE = Path(bpfree.__file__).parent

#: A message names the value at fault: a number, a setting, a quoted name, a type.
VALUE = re.compile(
    r"\d|=|/|'|`|\[|NaN|None|module|[a-z]_[a-z]|\b[A-Z][a-z]+|\b(?:list|tuple|dict|str|ndarray|Tensor|meta)\b"
)
#: A message says what would be right.
FIX = re.compile(
    r"\b(?:expected|use|give|pass|leave|convert|relabel|take|try|needs?|allowed|possible|call|make|move|put|"
    r"name|lower|raise|drop|choose|set|load|go on|detach|did you mean|trains|train|must|instead|only|scale|"
    r"does not accept|was built for|should|unknown|written by|not a bpfree state file|another network|first|"
    r"standardi[sz]e|replace|share|separate|keep|cut|switch|write|turn|remove|select|add|create|reduce|change|"
    r"save|rename|install)\b"
)
#: Sentences of PyTorch itself, which say nothing to who called a trainer.
FOREIGN = re.compile(
    r"^(?:mat1 and mat2|size mismatch|Expected \d|shape '\[|The size of tensor|element \d of)"
)
LONGEST = 500


class Watch:
    """Looks on while a case runs.

    Attributes:
        steps: Optimizer steps so far, of any optimizer.
        first: State of the followed module as it was in front of the first of them.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.first: dict[str, Tensor] = {}
        self._follow: Callable[[], nn.Module] | None = None
        self._modules: list[tuple[nn.Module, dict[str, Tensor]]] = []

    def over(self, *modules: nn.Module) -> None:
        """A refusal must leave these as they are now."""
        for module in modules:
            self._modules.append((module, _copied(module)))

    def used(self, *modules: nn.Module) -> None:
        """Training is over and was right; what comes now is a use of its own, with these as they are now."""
        self.steps, self._modules = 0, []
        self.over(*modules)

    def follow(self, module: Callable[[], nn.Module]) -> None:
        """Keep the state of what ``module`` gives, as it is in front of the first step."""
        self._follow = module

    def changed(self) -> str | None:
        """What has changed of the modules that are watched over."""
        for module, before in self._modules:
            after = _copied(module)
            for name, value in before.items():
                now = after.get(name)
                if now is None or now.shape != value.shape or not _same(now, value):
                    return f"{name} of the network has changed"
        return None

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count the steps that are taken inside."""
        hook = register_optimizer_step_pre_hook(self._on_step)
        try:
            yield
        finally:
            hook.remove()

    def _on_step(self, *_: Any) -> None:
        if not self.steps and self._follow is not None:
            try:
                self.first = _copied(self._follow())
            except bpfree.BadValue:
                return  # a copy is tried, and the trainer is not built yet
        self.steps += 1


def _copied(module: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor) and not isinstance(value, UninitializedParameter | UninitializedBuffer):
            found[name] = value.detach().clone()
    return found


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same values; NaN equals NaN."""
    return bool(torch.equal(a, b) or (torch.equal(a.nan_to_num(), b.nan_to_num()) and a.dtype == b.dtype))


@dataclass(frozen=True)
class Verdict:
    """What became of a case.

    Attributes:
        case: The case.
        outcome: Its outcome.
        reason: What is wrong; or the message of a refusal or warning.
        seconds: How long it took.
    """

    case: Case
    outcome: Outcome
    reason: str = ""
    seconds: float = field(default=0.0, compare=False)

    @property
    def passed(self) -> bool:
        """Whether that was expected."""
        return self.outcome in self.case.expected


def judge(case: Case) -> Verdict:
    """Run a case and say what became of it."""
    watch, started = Watch(), time.perf_counter()
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught, watch.counting():
        warnings.simplefilter("always")
        try:
            fault = case.attempt(watch)
        except Exception as error:  # noqa: BLE001  what it is, is the question
            outcome, reason = _of_error(error, watch, case)
        else:
            outcome, reason = _of_result(fault, [w for w in caught if not _about_time(w)], case)
    return Verdict(case, outcome, reason, time.perf_counter() - started)


def _of_result(fault: str | None, caught: list[warnings.WarningMessage], case: Case) -> tuple[Outcome, str]:
    texts = [" ".join(str(w.message).split()) for w in caught]
    if fault is not None and not (case.excused and len(caught) == 1 and _ours(caught[0])):
        return Outcome.WRONG, fault + (f" (warned: {texts[0]})" if texts else "")
    if not caught:
        return Outcome.RIGHT, ""
    foreign = [text for w, text in zip(caught, texts, strict=True) if not _ours(w)]
    if foreign:
        return Outcome.RAW, f"a warning of another library: {foreign[0]}"
    if len(caught) > 1:
        return Outcome.WRONG, f"{len(caught)} warnings, one is enough: {' | '.join(dict.fromkeys(texts))}"
    said = unclear(texts[0], fix=False) or untold(texts[0], case)
    return (Outcome.WRONG, f"the warning {said}: {texts[0]}") if said else (Outcome.WARNED, texts[0])


def _of_error(error: Exception, watch: Watch, case: Case) -> tuple[Outcome, str]:
    text = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    where = next((f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames) if _inside(f.filename)), "")
    meant = _inside(frames[-1].filename) and (frames[-1].line or "").startswith("raise")
    told = isinstance(error, bpfree.BpfreeError) or (isinstance(error, TypeError) and meant)
    if not told:
        return Outcome.RAW, f"{type(error).__name__} at {where}: {text[:300]}"
    # A device may fail at any time, and it is not for a trainer to know before.
    if watch.steps and not isinstance(error, DeviceError):
        return Outcome.RAW, f"{type(error).__name__} only after {watch.steps} steps of training: {text[:300]}"
    if not watch.steps and (change := watch.changed()) is not None:
        return Outcome.WRONG, f"refused, but {change}: {text[:300]}"
    # What an instrument says of itself is passed on as it is.
    plain = isinstance(error, DeviceError | bpfree.Diverged)
    if (said := (None if plain else unclear(str(error))) or untold(text, case)) is not None:
        return Outcome.RAW, f"the message {said}: {text[:300]}"
    return Outcome.REFUSED, text


def unclear(message: str, fix: bool = True) -> str | None:
    """What a message lacks to be one sentence that names the value, and a ``fix``; None: nothing."""
    if "\n" in message.strip():
        return "is more than one line"
    if len(message) > LONGEST:
        return f"has {len(message)} characters"
    if FOREIGN.match(message):
        return "is PyTorch's own"
    if not VALUE.search(message) and "call " not in message:
        return "names no value"
    if fix and not FIX.search(message):
        return "names no fix"
    return None


def untold(message: str, case: Case) -> str | None:
    """Whether a message lacks what this case must name."""
    missing = case.says and not re.search(case.says, message)
    return f"does not name what it is about (/{case.says}/)" if missing else None


def _inside(filename: str) -> bool:
    return PACKAGE in Path(filename).parents


def _ours(warning: warnings.WarningMessage) -> bool:
    internal = "Triggered internally" in str(warning.message)
    here = _inside(warning.filename) or Path(__file__).parent in Path(warning.filename).parents
    return here and not internal and issubclass(warning.category, UserWarning)


def _about_time(warning: warnings.WarningMessage) -> bool:
    """Whether it is about a later version of something, and so not about the input."""
    return issubclass(
        warning.category, DeprecationWarning | FutureWarning | PendingDeprecationWarning | ImportWarning
    )
