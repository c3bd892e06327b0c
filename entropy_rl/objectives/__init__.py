"""What is optimised: advantages, token losses, reductions, and the recipes that put them together."""

from entropy_rl.objectives.advantages import group_relative_advantages
from entropy_rl.objectives.recipes import RECIPES, Recipe, make_recipe

__all__ = ["RECIPES", "Recipe", "group_relative_advantages", "make_recipe"]
