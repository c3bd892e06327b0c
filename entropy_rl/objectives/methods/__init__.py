"""The four methods as additions to a recipe: each puts its functions at its places, and any subset can be combined."""

import inspect
from collections.abc import Callable
from typing import Any

from entropy_rl.objectives.methods.e3rl import e3rl
from entropy_rl.objectives.methods.entrocraft import entrocraft
from entropy_rl.objectives.methods.r3 import r3
from entropy_rl.objectives.methods.sent import sent
from entropy_rl.objectives.recipe import Recipe, RunFacts
from entropy_rl.objectives.recipes import check_choice, check_finite

# In the order in which they are applied to a recipe.
METHODS: dict[str, Callable[..., Recipe]] = {"r3": r3, "e3rl": e3rl, "sent": sent, "entrocraft": entrocraft}


def method_defaults(name: str) -> dict[str, Any]:
    """Every option of a method with its default."""
    check_choice("method", name, tuple(METHODS))
    return {option: p.default for option, p in list(inspect.signature(METHODS[name]).parameters.items())[2:]}


def add_methods(base: Recipe, facts: RunFacts, options: dict[str, dict[str, Any]]) -> Recipe:
    """``base`` with each method named in ``options``, by its options.

    Raises:
        ValueError: for an unknown method or option, naming those there are.
    """
    for name, given in options.items():
        known = method_defaults(name)
        for option in given:
            if option not in known:
                raise ValueError(f"method {name!r} has no option {option!r}; it has {', '.join(known)}")
        check_finite(name, given, may_be_infinite=("kappa",))
    recipe = base
    for name in (name for name in METHODS if name in options):
        recipe = METHODS[name](recipe, facts, **options[name])
    return recipe
