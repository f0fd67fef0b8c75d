"""The `bandpo` command line. Each subcommand has its own file, imported only when it runs."""

from __future__ import annotations

import os
import sys

from bandpo.cli.quiet import show_warnings
from bandpo.interrupts import ends_on_sigterm


def main() -> None:
    """Entry point: run a subcommand; an error is one line on stderr and a non-zero exit code."""
    try:
        from bandpo.cli.app import app
    except ImportError as error:
        sys.exit(f"error: the command line needs an extra: pip install 'bandpo[train]' ({error})")

    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) != len(sys.argv) - 1 or bool(os.environ.get("BANDPO_DEBUG"))
    try:
        show_warnings()
        with ends_on_sigterm():
            app(args=arguments, prog_name="bandpo")
    except Exception as error:
        if debug:
            raise
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        message = " ".join(str(error).split()) or "no message"
        print(f"error: {kind}{message}", file=sys.stderr)
        if not kind:
            sys.exit(1)
        sys.exit("run again with --debug for the traceback")
