"""Checking answers."""

from entropy_rl.verify.extraction import extract_answer
from entropy_rl.verify.grader import Grader
from entropy_rl.verify.notation import parse_number

__all__ = ["Grader", "extract_answer", "parse_number"]
