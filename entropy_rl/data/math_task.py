"""A task over the published sets: one or a mixture to train on, one or more to test on."""

import os
from collections.abc import Sequence

from entropy_rl.data.datasets import GradedTask, MixedProblems, prepared
from entropy_rl.data.math_sets import MathSetFiles, local_files, math_set
from entropy_rl.data.overlap import Overlap
from entropy_rl.data.streams import ChosenProblems
from entropy_rl.data.tasks import Problem
from entropy_rl.data.templates import prompt_template
from entropy_rl.verify.grader import Grader


def mixture(text: str) -> list[tuple[str, float]]:
    """Sets and weights of "deepscaler:2,gsm8k"; a weight that is not given is 1.

    Raises:
        ValueError: for an unknown or repeated set, or a weight that is no positive number.
    """
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, colon, weight = part.partition(":")
        math_set(name)
        try:
            value = float(weight) if colon else 1.0
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf"):
            raise ValueError(f"the weight of {part!r} is no positive number")
        found.append((name, value))
    names = [name for name, _ in found]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{text!r} does not name different sets, such as 'deepscaler:2,gsm8k:1'")
    return found


class MathTask(GradedTask):
    """Published sets, one or a mixture to train on and one or more to test on.

    Args:
        train, test: see ``mixture``; train may be "", for evaluation alone. Several test sets are interleaved, without
            weights.
        directory: holds a folder per set; "": $ENTROPY_RL_DATA for sets that are there, else downloads.
        template: a name or a text with ``{problem}``, see ``templates``.
        exclude_overlap: whether training problems that overlap with a test problem (see ``overlap``) are left out.
        data_dir: where TFDS keeps what it prepared.
        grader: of the answers.
        direct: whether a set's files may lie in ``directory`` itself.
    """

    def __init__(
        self, *, train: str, test: str, directory: str = "", template: str = "boxed", exclude_overlap: bool = False,
        data_dir: str | None = None, grader: Grader | None = None, direct: bool = False,
    ):  # fmt: skip
        super().__init__(grader)
        self.template = prompt_template(template)
        self._names = {"test": mixture(test)} | ({"train": mixture(train)} if train else {})
        if any(weight != 1 for _, weight in self._names["test"]):
            raise ValueError(f"test={test!r}: test sets are taken whole and have no weights")
        self._builders = {
            split: [
                MathSetFiles(
                    name, split, directory=self._where(name, split, directory), data_dir=data_dir, direct=direct
                )
                for name, _ in named
            ]
            for split, named in self._names.items()
        }
        self._exclude_overlap = exclude_overlap
        self._problems: dict[str, Sequence[Problem]] = {}

    @staticmethod
    def _where(name: str, split: str, directory: str) -> str:
        if directory:
            return directory
        known = os.environ.get("ENTROPY_RL_DATA", "")
        try:
            return known if known and local_files(name, split, known) else ""
        except ValueError:
            return ""

    def parts(self, split: str) -> list[tuple[MathSetFiles, Sequence[Problem]]]:
        """The sets of a split, each with all its problems, before they are mixed or compared."""
        return [(builder, prepared(builder, self.template)[split]) for builder in self._builders[split]]

    def problems(self, split: str) -> Sequence[Problem]:
        """Problems of "train" (mixed by weight) or "test" (all of every set), several sets interleaved."""
        if split not in self._names:
            raise ValueError(f"there is no split {split!r}, only {', '.join(self._names)}")
        if split not in self._problems:
            sets: list[Sequence[Problem]] = [problems for _, problems in self.parts(split)]
            ranges = [len(own) for own in sets]
            if split == "train" and self._exclude_overlap:
                overlap = Overlap(self.bare(problem) for problem in self.problems("test"))
                sets = [self._without(overlap, own) for own in sets]
            if len(sets) == 1:
                self._problems[split] = sets[0]
            elif split == "train":
                self._problems[split] = MixedProblems(
                    sets, [weight for _, weight in self._names[split]], id_ranges=ranges
                )
            else:
                sizes = [float(len(own)) for own in sets]
                self._problems[split] = MixedProblems(sets, sizes)
        return self._problems[split]

    def _without(self, overlap: Overlap, problems: Sequence[Problem]) -> Sequence[Problem]:
        rows = [i for i, problem in enumerate(problems) if not overlap.matches(self.bare(problem))]
        if not rows:
            raise ValueError("every training problem overlaps with a test problem; set exclude_overlap to False")
        return ChosenProblems(problems, rows)

    def bare(self, problem: Problem) -> str:
        """The problem's own text, without the template around it."""
        before, _, after = self.template.partition("{problem}")
        return problem.prompt.removeprefix(before).removesuffix(after)
