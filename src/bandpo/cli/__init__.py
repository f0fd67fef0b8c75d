"""The `bandpo` command line. Each subcommand has a file of its own, imported only when it runs."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Entry point: run a subcommand; a problem is one line on stderr and a non-zero exit."""
    try:
        from bandpo.cli.app import app
    except ImportError as error:
        sys.exit(f"error: the command line needs an extra: pip install 'bandpo[train]' ({error})")
    from click.exceptions import ClickException, Exit

    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) != len(sys.argv) - 1 or bool(os.environ.get("BANDPO_DEBUG"))
    try:
        status = app(args=arguments, prog_name="bandpo", standalone_mode=False)
    except Exit as leave:
        status = leave.exit_code
    except ClickException as error:
        error.show()
        status = error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except Exception as error:
        if debug:
            raise
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        message = " ".join(str(error).split()) or "no message"
        print(f"error: {kind}{message}", file=sys.stderr)
        if not isinstance(error, ValueError):
            print("run again with --debug for the traceback", file=sys.stderr)
        status = 1
    sys.exit(status if isinstance(status, int) else 0)
