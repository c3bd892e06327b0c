"""Checking answers."""

from entropy_rl.verify.grader import Grader, extract_answer, parse_number

__all__ = ["Grader", "extract_answer", "parse_number"]
