"""The command line of the search."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bpfree._errors import BadValue, BpfreeError
from bpfree.bench.arguments import count, seconds
from bpfree.bench.files import Mapped, override, read_yaml
from bpfree.bench.terminal import console
from bpfree.tune.plan import FIRST_SEED, Plan, make_plan


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0; 1 if a trial failed, or the time limit was reached before all trials were finished;
        2 for a mistake of the user; 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["report"]:
            from bpfree.tune.report import main as report

            return report(words[1:])
        return _tune(_parser().parse_args(words))
    except BpfreeError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, BadValue | FileNotFoundError) else 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command continues from here if it was given --out\n")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bpfree.tune",
        description="Search the settings of a method and of its controls, with the same number of trials for "
        "each, on validation data alone. The same command with the same --out joins or continues it.",
        epilog="python -m bpfree.tune report DIR draws the pictures of a search from its summary.",
    )
    parser.add_argument(
        "config", type=Path, help="an experiment, for example configs/tuning/default_digits.yaml"
    )
    parser.add_argument(
        "--trials", type=count, metavar="N", help="finished trials of each arm (with a grid: its size)"
    )
    parser.add_argument("--workers", type=count, default=1, metavar="K", help="trials at once (default 1)")
    parser.add_argument("--seeds", type=count, metavar="N", help=f"seeds of a trial: {FIRST_SEED} and on")
    parser.add_argument("--sampler", choices=("tpe", "random", "grid"), help="default tpe")
    parser.add_argument("--pruner", choices=("median", "hyperband", "none"), help="default median")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the study, its summary and the winner"
    )
    parser.add_argument(
        "--storage", metavar="URL", help="a database instead of a journal in DIR, for many machines"
    )
    parser.add_argument("--timeout", type=seconds, metavar="S", help="stop after S seconds")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="fit.epochs=5, for example"
    )
    parser.add_argument(
        "--checkpoint-every", type=seconds, default=20.0, metavar="S", help="seconds, default 20"
    )
    return parser


def _tune(arguments: argparse.Namespace) -> int:
    config = read_yaml(arguments.config)
    for assignment in arguments.set:
        override(config, assignment)
    options: Mapped = {k: getattr(arguments, k) for k in ("sampler", "pruner") if getattr(arguments, k)}
    if arguments.seeds:
        options["seeds"] = list(range(FIRST_SEED, FIRST_SEED + arguments.seeds))
    plan = make_plan(config, options, where=f"{arguments.config}: ")
    trials = _budget(plan, arguments.trials)
    folder = arguments.out or Path(tempfile.mkdtemp(prefix="bpfree-tune-"))

    from bpfree.tune.search import search

    return search(
        plan,
        trials,
        folder,
        console(width=160),
        url=arguments.storage,
        workers=arguments.workers,
        timeout=arguments.timeout,
        checkpoint_s=arguments.checkpoint_every,
    )


def _budget(plan: Plan, trials: int | None) -> int:
    """The number of trials of each arm.

    Raises:
        BadValue: If it is missing, or is not the size of every arm's grid.
    """
    searched = [arm for arm in plan.arms if arm.space]
    if not searched:
        raise BadValue(
            "tune: no arm has a setting to search: these trainers declare none that applies to their settings"
        )
    if plan.tune.sampler != "grid":
        if trials is None:
            raise BadValue("--trials: missing; give the number of trials of each arm")
        return trials
    sizes = {arm.label: arm.points for arm in searched}
    if len({*sizes.values(), *([trials] if trials else [])}) > 1:
        listed = ", ".join(f"{label}: {size}" for label, size in sizes.items())
        raise BadValue(
            "--sampler grid: every arm must have the same number of points, and --trials, if given, must be "
            f"that ({listed}; --trials {trials}): set them in tune.space or tune.arms"
        )
    return next(iter(sizes.values()))


if __name__ == "__main__":
    sys.exit(main())
