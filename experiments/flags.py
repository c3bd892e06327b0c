"""The command line that the modules share."""

import os
import sys
from collections.abc import Callable

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from entropy_rl.objectives.methods import METHODS
from entropy_rl.parallel import multihost


def run(function: Callable[..., object]) -> None:
    """Parses ``--config`` and ``--workdir`` (and ``--allow_config_change``) and calls ``function(config, workdir)``.

    A config that cannot be read, an unknown key or a value of another type ends the program with one sentence.
    """
    config = config_flags.DEFINE_config_file("config", None, "A file with get_config().", lock_config=True)
    workdir = flags.DEFINE_string("workdir", None, "Where everything the run leaves goes.")
    flags.mark_flags_as_required(["config", "workdir"])
    flags.DEFINE_bool("multihost", False, "Join the other processes of this run (jax.distributed) before starting.")
    change = flags.DEFINE_bool("allow_config_change", False, "Resume a workdir whose config was another.")

    for name in ("config", "workdir", "allow_config_change", "multihost"):  # what --help shows
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
    logging.set_verbosity(logging.WARNING)  # Orbax tells every step at INFO; --verbosity brings it back

    def main(argv) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unknown arguments {' '.join(argv[1:])}")
        keep_compiled()
        if flags.FLAGS.multihost:
            multihost.initialize()
        _refuse_idle_options(config.value, config_flags.get_override_values(flags.FLAGS["config"]))
        try:
            function(config.value, workdir.value, allow_config_change=change.value)
        except KeyboardInterrupt:
            print("\nstopped; the same command goes on from the last checkpoint", file=sys.stderr, flush=True)
            os._exit(130)  # a compilation may still be running in a thread of its own, and would crash on the way out

    app.run(main, flags_parser=parse)


def keep_compiled() -> None:
    """Programs that took a second to compile are kept for the next run, in ~/.cache/entropy_rl/compiled.

    $JAX_COMPILATION_CACHE_DIR names another place, or, empty, none.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        caches = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(caches, "entropy_rl", "compiled"))


def _refuse_idle_options(config, overridden) -> None:
    """Ends the program where the command line sets an option of a method that is off."""
    named = [name.strip() for name in config.methods.split(",")]
    for key in overridden:
        method = key.partition(".")[0]
        if method in METHODS and method not in named:
            print(f"error: --config.{key} has no effect: add {method} to config.methods", file=sys.stderr)
            sys.exit(2)


def parse(argv: list[str]) -> list[str]:
    """absl's parser, for a program with ``--config``: what is wrong ends it with one sentence."""
    try:
        rest = flags.FLAGS(argv, known_only=False)
        _ = flags.FLAGS.config.seed  # a config file that could not be loaded fails here
        return rest
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, ImportError, SyntaxError) as error:
        text = str(error.args[0] if error.args else error).strip()
        if "Traceback" in text:  # ml_collections quotes the whole traceback of a config that failed
            text = text.splitlines()[-1]
        if text.startswith(("'", '"')) and text.endswith(text[0]):  # the repr of a KeyError's text
            text = text[1:-1]
        if isinstance(error, AttributeError | KeyError) and "config" not in text:
            text = f"the config has no key {text}"
        text = " ".join(text.replace("\\n", " ").replace("\\'", "'").split())
        print(f"error: {text}", file=sys.stderr)
        sys.exit(2)
