"""Packaging; tool settings are in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "entropy_rl" / "__init__.py").read_text())[1]

setup(
    name="entropy_rl",
    version=VERSION,
    description="Reinforcement learning of reasoning language models, steered by the policy's own entropy, in JAX",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["entropy_rl", "entropy_rl.*", "pallas_kernels", "pallas_kernels.*"]),
    install_requires=[
        "absl-py>=2.1,<3",
        "array_record>=0.5,<1",
        "etils[epath,epy]>=1.9,<2",
        "flax>=0.12,<0.14",
        "grain>=0.2.10,<0.4",
        "importlib_resources>=6,<8",  # tensorflow-datasets needs it and does not say so
        "jax>=0.10.2,<0.12",
        "jaxtyping>=0.3,<0.4",
        "math-verify>=0.9,<0.10",  # used only in worker processes, see entropy_rl/verify
        "matplotlib>=3.9,<4",
        "ml-collections>=1.0,<2",
        "numpy>=2,<3",
        "optax>=0.2.8,<0.4",
        "orbax-checkpoint>=0.12,<0.13",
        "pyarrow>=17,<28",
        "sentencepiece>=0.2,<0.3",
        "tensorboardX>=2.6,<3",
        "tensorflow-datasets>=4.9.9,<5",
        "tqdm>=4.66,<5",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2,<0.12"],
        "cuda": ["jax[cuda12]>=0.10.2,<0.12"],
        "hf": ["jinja2>=3.1.6,<4", "safetensors>=0.5,<1", "tokenizers>=0.20,<1"],
        "parity": ["torch==2.13.0", "transformers>=5,<6"],  # what the slow tests hold models and tokenizers against
        "wandb": ["wandb>=0.18,<1"],
        "test": [
            "beartype>=0.20,<1",
            "hypothesis>=6.100,<7",
            "mypy>=1.15,<3",
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.9,<1",
        ],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
