"""Texts around a problem, by name; ``{problem}`` marks its place."""

PROMPTS = {
    "plain": "{problem}\n",
    # Qwen2.5-Math's, https://arxiv.org/abs/2409.12122.
    "boxed": "{problem}\nPlease reason step by step, and put your final answer within \\boxed{}.",
    # DeepSeek-R1-Zero's, https://arxiv.org/abs/2501.12948, table 1; for base models, without a chat template.
    "r1": (
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The "
        "assistant first thinks about the reasoning process in the mind and then provides the user with the answer. "
        "The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, "
        "respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>. User: {problem}. "
        "Assistant:"
    ),
}


def prompt_template(name: str) -> str:
    """The template of that name, or ``name`` itself where it has a place for the problem.

    Raises:
        ValueError: where it has none.
    """
    template = PROMPTS.get(name, name)
    if "{problem}" not in template:
        raise ValueError(f"template {name!r} is not one of {', '.join(PROMPTS)} and has no place for {{problem}}")
    return template
