"""The command ``revkit``: ``revkit demo`` and ``revkit doctor``; also ``python -m revkit``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ._version import __version__
from .clients.registry import examples

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit status: 0 done; 1 the run failed, or no model can be reached; 2 the call cannot
        be carried out as written; 130 interrupted.
    """
    parser = argparse.ArgumentParser(
        prog="revkit",
        description="Run a language model over every row of a DataFrame.",
        epilog=f"Models are named like {', '.join(examples())}.",
    )
    parser.add_argument("--version", action="version", version=f"revkit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="classify the sentiment of reviews and show where the time went",
        description="Classify the sentiment of twelve product reviews, or of a file of yours, and "
        "show where the time went.",
    )
    demo.add_argument(
        "--model",
        help=f"{', '.join(examples())}, … (default: local, the embedded model)",
    )
    demo.add_argument("--workers", type=int, default=4, help="how many workers (default: 4)")
    demo.add_argument("--input", type=Path, metavar="FILE", help="a .csv or .parquet of your own")
    demo.add_argument("--on", metavar="COLUMN", help='its column of texts (default: "review")')
    demo.add_argument("--output", type=Path, metavar="FILE", help="write the finished frame here")
    demo.add_argument(
        "--timeline",
        type=Path,
        metavar="FILE",
        default=Path("revkit-timeline.png"),
        help="write the timeline's picture here (default: %(default)s)",
    )

    demo.add_argument(
        "--overwrite",
        action="store_true",
        help="replace columns named sentiment or error that the input has already",
    )

    doctor = commands.add_parser(
        "doctor",
        help="say which models can be reached, and what to do about the others",
        description="Say which models can be reached, and what to do about the others. No model is "
        "asked for a reply, but with --parallel.",
    )
    doctor.add_argument(
        "--parallel",
        metavar="MODEL",
        help=f"find out how many requests the server of this model, such as {examples()[0]}, works "
        "on at once: with at most 31 short requests, which a provider bills",
    )

    options = parser.parse_args(arguments)
    from .errors import ModelUnavailable, RunFailed, UsageError

    try:
        if options.command == "doctor":
            from .cli.doctor import doctor as run_doctor

            return run_doctor(options.parallel)
        from .cli.demo import demo as run_demo

        return run_demo(
            model=options.model,
            workers=options.workers,
            source=options.input,
            on=options.on,
            target=options.output,
            timeline=options.timeline,
            overwrite=options.overwrite,
        )
    except UsageError as error:
        _say(f"revkit: {error}")
        return 2
    except (RunFailed, ModelUnavailable) as error:
        _say(f"revkit: {error}")
        return 1
    except KeyboardInterrupt as error:
        _say(f"revkit: {error or 'interrupted'}")
        return 130


def _say(message: str) -> None:
    print(message, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
