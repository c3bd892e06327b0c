"""What is optimised: advantages, token losses, reductions, and the recipes that put them together."""

from entropy_rl.objectives.advantages import group_relative_advantages
from entropy_rl.objectives.methods import METHODS, add_methods
from entropy_rl.objectives.recipe import PLACES, Recipe, RunFacts, Stage, StepContext, run_stages
from entropy_rl.objectives.recipes import RECIPES, advantage_stage, make_recipe

__all__ = [
    "METHODS", "PLACES", "RECIPES", "Recipe", "RunFacts", "Stage", "StepContext", "add_methods", "advantage_stage",
    "group_relative_advantages", "make_recipe", "run_stages",
]  # fmt: skip
