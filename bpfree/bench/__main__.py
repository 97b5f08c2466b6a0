"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import errno
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bpfree._errors import BpfreeError
from bpfree.bench import report
from bpfree.bench.arguments import count, seconds, share
from bpfree.bench.cells import Cell
from bpfree.bench.compare import changes
from bpfree.bench.compare import show as show_changes
from bpfree.bench.config import cells
from bpfree.bench.default import SUITE
from bpfree.bench.display import progress_display
from bpfree.bench.doctor import examine
from bpfree.bench.doctor import show as show_findings
from bpfree.bench.energy import of_all, summary
from bpfree.bench.files import override, read_yaml
from bpfree.bench.protocol import has_matched, matched
from bpfree.bench.results import Results, Row, read_all, with_results
from bpfree.bench.runner import run
from bpfree.bench.sections import NETS
from bpfree.bench.table import show
from bpfree.bench.terminal import console as make_console
from bpfree.bench.terminal import visible
from bpfree.data import describe, describe_graphs
from bpfree.losses import loss_names, loss_options
from bpfree.meters import meter
from bpfree.trainers import TRAINERS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 if a cell failed, 2 for a mistake of the user."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.command(arguments))
    except BpfreeError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except OSError as error:
        # Errors of rows and pages are BpfreeErrors: this is the output, redirected to a full disk.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.stderr.write(f"error: the output cannot be written: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command continues from here if it was given --out\n")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bpfree.bench",
        description="Without a command: every trainer beside backpropagation on embedded data, offline.",
    )
    parser.set_defaults(command=_default)
    _run_options(parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    one = commands.add_parser("run", help="run the experiments of YAML files")
    one.add_argument(
        "configs",
        type=Path,
        nargs="+",
        metavar="config",
        help="for example configs/mono_forward_mnist_mlp.yaml",
    )
    one.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="trainer.lr=2e-4, for example"
    )
    _run_options(one)
    one.set_defaults(command=_run)

    listing = commands.add_parser("list", help="list trainers, data sets, nets and losses")
    listing.set_defaults(command=_list)

    doctor = commands.add_parser("doctor", help="show what this machine can measure")
    doctor.add_argument("--device", metavar="NAME", help="cpu or cuda; by default the GPU if there is one")
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.set_defaults(command=_doctor)

    reporting = commands.add_parser("report", help="the table of results, and report.html")
    reporting.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="folders of results")
    reporting.add_argument(
        "--targets", type=share, nargs="+", default=[], metavar="T", help="validation values, 0 to 1"
    )
    reporting.add_argument(
        "--html", type=Path, metavar="FILE", help="default: report.html in the first folder"
    )
    reporting.add_argument(
        "--study", type=Path, nargs="+", default=[], metavar="DIR", help="folders of searches to include"
    )
    reporting.set_defaults(command=_report)

    comparing = commands.add_parser(
        "compare",
        help="compare two results",
        description="Exit code: 0 if nothing is worse, 1 if something is worse or missing, 2 for a mistake.",
    )
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    comparing.set_defaults(command=_compare)
    return parser


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=count, metavar="N", help="seeds 0 to N-1 instead of the config's own")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of rows and weights; a stopped run continues there"
    )
    parser.add_argument(
        "--checkpoint-every", type=seconds, default=20.0, metavar="S", help="seconds, default 20"
    )
    parser.add_argument(
        "--cooldown", type=seconds, default=0.0, metavar="S", help="idle seconds between cells, default 0"
    )
    parser.add_argument(
        "--limit",
        type=seconds,
        metavar="S",
        help="maximal seconds of a cell; default: none",
    )
    parser.add_argument(
        "--jobs", type=count, metavar="N", help="cells at once (default 1; the default suite: 2)"
    )


def _default(arguments: argparse.Namespace) -> int:
    suite_cells = [cell for config in SUITE for cell in cells(config, arguments.seeds)]
    with meter("cpu") as energy:
        with energy("bench"):
            code = _bench(suite_cells, arguments, jobs=arguments.jobs or 2)
        make_console().print(of_all(energy, "bench"), soft_wrap=True)
    return code


def _run(arguments: argparse.Namespace) -> int:
    by_id: dict[str, Cell] = {}
    then_matched: list[Cell] = []
    for path in arguments.configs:
        config = read_yaml(path)
        for assignment in arguments.set:
            override(config, assignment)
        of_config = cells(config, arguments.seeds, where=f"{path}: ")
        then_matched += of_config if has_matched(config, of_config) else []
        # A cell that is in two files, such as a baseline, runs once, under the label of the first file.
        for cell in of_config:
            by_id.setdefault(cell.id, cell)
    return _bench(list(by_id.values()), arguments, arguments.jobs or 1, then_matched)


def _bench(
    first_cells: Sequence[Cell], arguments: argparse.Namespace, jobs: int, then_matched: Sequence[Cell] = ()
) -> int:
    results = Results(arguments.out or Path(tempfile.mkdtemp(prefix="bpfree-bench-")))

    def measure(cells: Sequence[Cell]) -> list[Row]:
        with progress_display(cells) as callbacks:
            every, cooldown, limit = arguments.checkpoint_every, arguments.cooldown, arguments.limit
            return run(cells, results, jobs, every, callbacks, cooldown, limit)

    rows = measure(first_cells)
    if then_matched:
        rows += measure(matched(then_matched, rows))
    console = make_console()
    show(rows, console)
    for line in summary(rows):
        console.print(line, soft_wrap=True)
    if jobs > 1:
        console.print(f"{jobs} cells ran at once: the times are rough; --jobs 1 gives better ones")
    console.print(f"rows and weights: {visible(str(results.folder))}", soft_wrap=True)
    return _exit_code(rows)


def _exit_code(rows: Sequence[Row]) -> int:
    return int(any(row["status"] != "ok" for row in rows))


def _list(_: argparse.Namespace) -> int:
    console = make_console()
    for name, kind in TRAINERS.items():
        console.print(f"trainer  {name:16} {(kind.__doc__ or '').splitlines()[0]}")
    for name, text in [*describe(), *describe_graphs()]:
        console.print(f"dataset  {name:16} {text}")
    for name, net in NETS.items():
        console.print(f"net      {name:16} {(net.__doc__ or '').splitlines()[0]}")
    for name in loss_names():
        options = ", ".join(loss_options(name)) or "none"
        console.print(f"loss     {name:18} for trainer local; options: {options}")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    findings = examine(arguments.device)
    if arguments.json:
        make_console().print(json.dumps(findings, indent=1), soft_wrap=True)
    else:
        show_findings(findings, make_console())
    return 0


def _report(arguments: argparse.Namespace) -> int:
    folders, skipped = with_results(arguments.folders)
    rows, notes = read_all(folders)
    if skipped:
        notes.append(f"skipped, as they have no results of a bench: {', '.join(map(str, skipped))}")
    searches = [report.read_search(folder) for folder in arguments.study]
    notes += [
        f"{folder} has no pictures of its search: python -m bpfree.tune report {folder} draws them"
        for folder, search in zip(arguments.study, searches, strict=True)
        if not search.plots and any("best" in arm for arm in search.arms)
    ]
    path = arguments.html or folders[0] / "report.html"
    console = make_console()
    # The page is written first: the reader of the output may close the pipe.
    try:
        report.write(rows, path, arguments.targets, [str(folder) for folder in folders], searches)
    finally:
        show(rows, console)
        for note in notes:
            console.print(f"note: {visible(note)}", soft_wrap=True)
    console.print(f"report: {visible(str(path))}", soft_wrap=True)
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    result = changes(read_all([arguments.before])[0], read_all([arguments.after])[0])
    show_changes(result, make_console())
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main())
