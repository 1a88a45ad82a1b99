"""Installs the library `cm3jax` with its presets; launch commands run from a checkout."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "cm3jax/__init__.py").read_text())[1]

# Ranges, not pins: the lower end is the oldest version that the tests ran with, the upper end the
# next release line, which may break. `requirements.lock` holds one tested set.
REQUIRES = [
    "jax>=0.10.2,<0.13",  # 0.10.2 is the last for Python 3.11, 0.12 the newest; CI tests both
    "flax>=0.12.8,<0.13",  # Linen modules
    "optax>=0.2.8,<0.3",  # the optimiser
    "orbax-checkpoint>=0.12.8,<0.13",  # sharded, asynchronous checkpoints
    "numpy>=2.1,<3",  # the host side of data and retrieval
    "absl-py>=2",  # to quieten what other libraries log about themselves
    "etils[epath]>=1.13",  # one path type for local folders and buckets
    "sentencepiece>=0.2.2,<0.3",  # the text tokenizer
    "scann>=1.4.2,<2; sys_platform == 'linux'",  # the index of large banks; no macOS wheels
    "transformers>=5.17,<6",  # text tokenizers without a tokenizer.json; no torch needed
    "huggingface_hub>=1",  # foreign weights by their hub id; transformers needs it anyway
    "tokenizers>=0.22",  # those with one
    "tensorflow-datasets>=4.9.10,<5",  # `emblems` as a builder, array_record files; no tensorflow
    "grain>=0.2.18,<0.3",  # parallel reading of training rows
    "array_record>=0.8.3",  # the corpus and the bank on disk
    "tyro>=1.0,<2",  # config dataclasses as a command line
    "rich>=14",  # progress on a terminal
    "pyyaml>=6",  # manifests of jobs
    "pillow>=12,<14",  # images in and out
    "safetensors>=0.8,<0.9",  # exported and foreign weights
    "importlib_resources>=6",  # tensorflow-datasets imports it without declaring it
    "jaxtyping>=0.3,<0.4",  # shapes in public signatures
]

EXTRAS = {
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda13]"],
    "pipeline": [
        "apache-beam>=2.77",  # corpus preparation on many workers
        "pyarrow>=18",  # parquet tables of captions
    ],
    "store": [
        "pymilvus>=3.0,<4",  # a shared server for growing banks
        "milvus-lite>=3.2",  # the same in one local file
        "gcsfs",  # gs:// paths
    ],
    "emoji": ["resvg-py>=0.5,<0.6"],  # draws the SVG of data.source=emoji
    "trackio": ["trackio>=0.43,<1"],  # train.tracker=trackio: curves of runs side by side, locally
    "wandb": ["wandb>=0.31,<1"],  # train.tracker=wandb: the same by a service
    "quantised": ["qwix>=0.1.8,<0.2"],  # few bits: in training, in weights, in caches
    "serve": [
        "fastapi>=0.120,<1",  # routes of launch.serve; their bodies are checked by pydantic
        "pydantic>=2.12,<3",  # the shapes of requests and answers
        "uvicorn>=0.38",  # its HTTP
        "httptools>=0.6.3",  # uvicorn's parser of it in C: without, one in Python
        "python-multipart>=0.0.20",  # uploads of /v1/images/edits
        "prometheus-client>=0.23",  # /metrics
    ],
    "report": [
        "tensorboard>=2.21",  # curves beside the run's own metrics.jsonl
        "matplotlib>=3.10",  # figures of the paper
    ],
    "test": [
        "fastapi>=0.120,<1",  # the server
        "pydantic>=2.12,<3",  # its protocol
        "uvicorn>=0.38",  # runs it on loopback
        "python-multipart>=0.0.20",  # uploads
        "prometheus-client>=0.23",  # /metrics
        "openai>=2,<3",  # the client that it must please, unchanged
        "playwright>=1.50,<2",  # drives its page in the machine's own Chromium
        "pytest>=9,<10",
        "pytest-timeout",  # a hanging collective fails instead of blocking CI
        "pytest-xdist",  # -n on machines with cores to spare
        "chex>=0.1.92",  # trace counts and tree assertions
        "hypothesis",  # properties of documents and sequences
        "beartype>=0.22",  # checks the jaxtyping annotations at run time
        "ruff>=0.14",  # lint and format
        "mypy>=2.4,<3",  # static types
        "jsonschema>=4",  # manifests of jobs against the published schema
        "qwix>=0.1.8,<0.2",  # training in int8 and fp8
        "trackio>=0.43,<1",  # reads back what a run tells its tracker
        "tensorboard>=2.21",  # reads back the curves that a run writes
        "apache-beam>=2.77",  # both engines of preparation give the same bytes
        "pyarrow>=18",  # parquet tables
        "pymilvus>=3.0,<4",  # the index protocol over Milvus
        "milvus-lite>=3.2",  # its server, in the test's own process
        "resvg-py>=0.5,<0.6",  # the images of emoji
        "nbclient>=0.11,<0.12",  # runs docs/tutorial.ipynb cell by cell, as a notebook server does
        "ipykernel>=7,<8",  # the kernel that it runs them in
    ],
    "bench": ["faiss-cpu>=1.15"],  # the other exact index, side by side
    # Tests against transformers' own models and torch's own files; the CPU build will do. It is in
    # no lock: which build of torch is right depends on the machine.
    "parity": ["torch>=2.13,<3"],
}

# What reproduces the paper's claims and what scores the miniature are not installed.
PRESETS = [
    f"cm3jax.{name}"
    for name in find_packages(
        include=["experiments.*"], exclude=["experiments.claims", "experiments.miniature.scores"]
    )
]

setup(
    name="cm3jax",
    version=VERSION,
    description="CM3Leon in JAX: retrieval-augmented generation of text and images",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    url="https://arxiv.org/abs/2309.02591",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    keywords="jax flax multimodal retrieval image-generation",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=[*find_packages(include=["cm3jax", "cm3jax.*"]), *PRESETS],
    package_dir={"cm3jax.experiments": "experiments"},  # not the folder that leads there
    package_data={"cm3jax": ["py.typed", "serve/page/*"]},
    python_requires=">=3.11",
    install_requires=REQUIRES,
    extras_require=EXTRAS,
)
