"""Registers the commands, and turns errors into one sentence and an exit code."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from gdfq_export import __version__
from gdfq_export.cli.bench import bench
from gdfq_export.cli.evaluate import evaluate
from gdfq_export.cli.inspect import inspect
from gdfq_export.cli.models import models
from gdfq_export.cli.quantize import quantize
from gdfq_export.cli.streams import claim_stdout, drop_stdout, release_stdout
from gdfq_export.cli.verify import verify
from gdfq_export.errors import LostProcessError, OutputFileError, Reason

EXIT_BUG = 70  # EX_SOFTWARE: our fault, not the user's
EXIT_INTERRUPTED = 130
STARTED_AT = 19  # of the fields behind the name in /proc/PID/stat, in ticks since the machine was started
LONGEST_START = 60.0  # seconds; more is a clock that means something else

app = typer.Typer(
    name="gdfq-export",
    help="Quantize a trained PyTorch image classifier without data, and prove that the ONNX file is exact.",
    epilog="Exit codes: 0 done, 1 a check failed, 2 wrong command line, 3 model not supported, "
    "4 file missing, damaged or in the way, 70 a bug of ours, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"gdfq-export {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


for command in (quantize, verify, inspect, bench, evaluate, models):
    app.command()(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; a traceback is shown only with `--debug`."""
    if arguments is not None:
        return _run(list(arguments), time.monotonic())
    words, started = sys.argv[1:], process_start()
    claim_stdout()
    code = _run(words, started)
    try:
        release_stdout()
    except OutputFileError as error:
        return _fail(str(error), error.exit_code, [word for word in words if word != "--json"], "--debug" in words)
    return code


def _run(words: list[str], started: float) -> int:
    """`started` is what a budget counts from."""
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        # With standalone_mode off, click returns the code of `typer.Exit` instead of raising it: 130 after Ctrl-C.
        command = typer.main.get_command(app)
        code = int(command.main(words, prog_name="gdfq-export", standalone_mode=False, obj=started) or 0)
        return _interrupted(words, debug) if code == EXIT_INTERRUPTED else code
    except KeyboardInterrupt:
        return _interrupted(words, debug)
    except BrokenPipeError:
        drop_stdout()
        return 0
    except SystemExit as error:  # of a library: what users' code raises is told apart where it runs
        if isinstance(error.__context__, BrokenPipeError):  # as click ends then
            drop_stdout()
            return 0
        text = f"unexpected sys.exit({error.code!r}) (a bug of ours; run again with --debug and report it)"
        return _fail(text, EXIT_BUG, words, debug)
    except Exception as error:
        code = getattr(error, "exit_code", EXIT_BUG)
        if hasattr(error, "format_message"):  # a usage error of the parser
            return _fail(error.format_message(), code, words, debug)
        if isinstance(error, typer.Abort):
            return _interrupted(words, debug)
        if code == EXIT_BUG:
            text = f"unexpected {type(error).__name__}: {error} (a bug of ours; run again with --debug and report it)"
            return _fail(text, code, words, debug)
        if isinstance(error, LostProcessError) and os.environ.get("RANK", "0") != "0":
            return int(code)  # process 0 says it for all that are left
        return _fail(str(error), code, words, debug, getattr(error, "reasons", ()))


def process_start() -> float:
    """When this process began, on the clock of `time.monotonic`; now, where the system does not tell."""
    now = time.monotonic()
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[STARTED_AT]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return now
    return now - age if 0 <= age < LONGEST_START else now


def _interrupted(words: Sequence[str], debug: bool) -> int:
    hint = "; --resume goes on from the last saved state" if words[:1] == ["quantize"] else ""
    return _fail(f"interrupted{hint}", EXIT_INTERRUPTED, words, debug)


def _fail(message: str, code: int, words: Sequence[str], debug: bool, reasons: Sequence[Reason] = ()) -> int:
    """Says `message` on stderr and, with `--json`, as one object on stdout, where the reasons are a list too."""
    if debug:
        traceback.print_exc()
    print(f"gdfq-export: {' '.join(message.split())}", file=sys.stderr)
    if "--json" in words:
        listed = [{"operator": each.operator, "place": each.place, "advice": each.advice} for each in reasons]
        print(json.dumps({"error": message, "exit_code": code, **({"reasons": listed} if listed else {})}))
    return code
