"""Run a case: its outcome is right, refused, warned about, silently wrong, or an error of another library."""

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

#: A message contains the wrong value: a number, a setting, a quoted name, a type.
VALUE = re.compile(
    r"\d|=|/|'|`|\[|NaN|None|module|[a-z]_[a-z]|\b[A-Z][a-z]+|\b(?:list|tuple|dict|str|ndarray|Tensor|meta)\b"
)
#: A message contains the fix.
FIX = re.compile(
    r"\b(?:expected|use|give|pass|leave|convert|relabel|take|try|needs?|allowed|possible|call|make|move|put|"
    r"name|lower|raise|drop|choose|set|load|go on|detach|did you mean|trains|train|must|instead|only|scale|"
    r"does not accept|was built for|should|unknown|written by|not a bpfree state file|another network|first|"
    r"standardi[sz]e|replace|share|separate|keep|cut|switch|write|turn|remove|select|add|create|reduce|change|"
    r"save|rename|install)\b"
)
#: Messages of PyTorch, which do not name an argument of a trainer.
FOREIGN = re.compile(
    r"^(?:mat1 and mat2|size mismatch|Expected \d|shape '\[|The size of tensor|element \d of)"
)
LONGEST = 500


class Watch:
    """Records optimizer steps and changes of modules while a case runs.

    Attributes:
        steps: Number of steps so far, of any optimizer.
        first: State of the followed module before the first step.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.first: dict[str, Tensor] = {}
        self._follow: Callable[[], nn.Module] | None = None
        self._modules: list[tuple[nn.Module, dict[str, Tensor]]] = []

    def protect(self, *modules: nn.Module) -> None:
        """Require that a refusal leaves these modules unchanged."""
        for module in modules:
            self._modules.append((module, _copied(module)))

    def end_training(self, *modules: nn.Module) -> None:
        """Count from zero after a correct training; a later refusal must leave these modules unchanged."""
        self.steps, self._modules = 0, []
        self.protect(*modules)

    def follow(self, module: Callable[[], nn.Module]) -> None:
        """Record the state of the module that ``module`` returns, before the first step."""
        self._follow = module

    def changed(self) -> str | None:
        """The first change of a protected module as text, None if there is none."""
        for module, before in self._modules:
            after = _copied(module)
            for name, value in before.items():
                now = after.get(name)
                if now is None or now.shape != value.shape or not _same(now, value):
                    return f"{name} of the network has changed"
        return None

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count optimizer steps inside."""
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
                return  # a step on a copy, before the trainer is built
        self.steps += 1


def _copied(module: nn.Module) -> dict[str, Tensor]:
    copies = {}
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor) and not isinstance(value, UninitializedParameter | UninitializedBuffer):
            copies[name] = value.detach().clone()
    return copies


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same values; NaN equals NaN."""
    return bool(torch.equal(a, b) or (torch.equal(a.nan_to_num(), b.nan_to_num()) and a.dtype == b.dtype))


@dataclass(frozen=True)
class Verdict:
    """The outcome of a case.

    Attributes:
        case: The case.
        outcome: Its outcome.
        reason: The fault, or the message of a refusal or warning.
        seconds: Duration.
    """

    case: Case
    outcome: Outcome
    reason: str = ""
    seconds: float = field(default=0.0, compare=False)

    @property
    def passed(self) -> bool:
        """Whether the outcome was expected."""
        return self.outcome in self.case.expected


def run_case(case: Case) -> Verdict:
    """Run a case and return its outcome."""
    watch, started = Watch(), time.perf_counter()
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught, watch.counting():
        warnings.simplefilter("always")
        try:
            fault = case.attempt(watch)
        except Exception as error:  # noqa: BLE001  any error is an outcome
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
    fault = unclear_part(texts[0], fix=False) or missing_name(texts[0], case)
    return (Outcome.WRONG, f"the warning {fault}: {texts[0]}") if fault else (Outcome.WARNED, texts[0])


def _of_error(error: Exception, watch: Watch, case: Case) -> tuple[Outcome, str]:
    text = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    where = next((f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames) if _inside(f.filename)), "")
    raised_here = _inside(frames[-1].filename) and (frames[-1].line or "").startswith("raise")
    refused = isinstance(error, bpfree.BpfreeError) or (isinstance(error, TypeError) and raised_here)
    if not refused:
        return Outcome.RAW, f"{type(error).__name__} at {where}: {text[:300]}"
    # A device may fail at any time; a trainer cannot know this before training.
    if watch.steps and not isinstance(error, DeviceError):
        return Outcome.RAW, f"{type(error).__name__} only after {watch.steps} steps of training: {text[:300]}"
    if not watch.steps and (change := watch.changed()) is not None:
        return Outcome.WRONG, f"refused, but {change}: {text[:300]}"
    # Messages of an instrument are passed on unchanged.
    plain = isinstance(error, DeviceError | bpfree.Diverged)
    if (fault := (None if plain else unclear_part(str(error))) or missing_name(text, case)) is not None:
        return Outcome.RAW, f"the message {fault}: {text[:300]}"
    return Outcome.REFUSED, text


def unclear_part(message: str, fix: bool = True) -> str | None:
    """What makes a message unclear: it must be one sentence with the value and, if ``fix``, the fix."""
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


def missing_name(message: str, case: Case) -> str | None:
    """The text that a message must contain in this case and does not."""
    missing = case.mentions and not re.search(case.mentions, message)
    return f"does not match /{case.mentions}/" if missing else None


def _inside(filename: str) -> bool:
    return PACKAGE in Path(filename).parents


def _ours(warning: warnings.WarningMessage) -> bool:
    internal = "Triggered internally" in str(warning.message)
    here = _inside(warning.filename) or Path(__file__).parent in Path(warning.filename).parents
    return here and not internal and issubclass(warning.category, UserWarning)


def _about_time(warning: warnings.WarningMessage) -> bool:
    """Whether a warning is about future versions, and not about the input."""
    return issubclass(
        warning.category, DeprecationWarning | FutureWarning | PendingDeprecationWarning | ImportWarning
    )
