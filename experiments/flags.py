"""The command line that the modules share."""

import sys
from collections.abc import Callable

from absl import app, flags, logging
from ml_collections import config_flags


def run(function: Callable[..., object], *, resumable: bool = True) -> None:
    """Parses ``--config`` and ``--workdir`` (and ``--allow_config_change``) and calls ``function(config, workdir)``.

    A config that cannot be read, an unknown key or a value of another type ends the program with one sentence.
    """
    config = config_flags.DEFINE_config_file("config", None, "A file with get_config().", lock_config=True)
    workdir = flags.DEFINE_string("workdir", None, "Where everything the run leaves goes.")
    flags.mark_flags_as_required(["config", "workdir"])
    change = flags.DEFINE_bool("allow_config_change", False, "Resume a workdir whose config was another.")

    logging.set_verbosity(logging.WARNING)  # Orbax tells every step at INFO; --verbosity brings it back

    def main(argv) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unknown arguments {' '.join(argv[1:])}")
        options = {"allow_config_change": change.value} if resumable else {}
        function(config.value, workdir.value, **options)

    app.run(main, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv, known_only=False)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, ImportError, SyntaxError) as error:
        text = str(error.args[0] if error.args else error).strip().splitlines()[0]
        print(f"error: {text}", file=sys.stderr)
        sys.exit(2)
