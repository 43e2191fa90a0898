"""Package metadata and dependencies, and their only home: pyproject.toml holds tool settings."""

import re
import runpy
import shutil
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


def read_version() -> str:
    """Read ``__version__`` as text, so that installing imports nothing of ours."""
    source = (ROOT / "ds_seq" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', source, flags=re.MULTILINE)
    if match is None:
        raise RuntimeError('ds_seq/__init__.py holds no line of the form: __version__ = "1.2.3"')
    return match.group(1)


class BuildWithConfigs(build_py):
    """Copies `configs/` into the package, where `ds_seq.config.shipped` finds it once installed."""

    def run(self) -> None:
        """Build; an editable installation reads the files of the checkout instead."""
        super().run()
        if self.editable_mode:
            return
        place = Path(self.build_lib) / "ds_seq" / "configs"
        shutil.rmtree(place, ignore_errors=True)  # of an earlier build
        for folder in ("experiments", "ds_config"):
            shutil.copytree(ROOT / "configs" / folder, place / folder)


# torch: from 2.10 on it has the grouped matmul that the experts use. No build is named: the
# index decides between CPU and CUDA.
# deepspeed: the expert layer rests on a contract with its engine that is tested for this range.
REQUIREMENTS = [
    "torch>=2.10,<2.14",
    "deepspeed>=0.19.8,<0.20",
    "mpi4py",
    "numpy",
    "pillow>=10.1",
    "protobuf",
    "pydantic>=2.7",
    "pyyaml",
    "sacrebleu",
    "sacremoses",
    "safetensors",
    "sentencepiece",
    "tensorboard",
    "tqdm",
    "typing-extensions>=4.12",
]
SUMMARIZATION = ["rouge-score"]
ZSTD = ["zstandard"]  # reads .zst; the program zstd will do, too
PLOT = ["matplotlib"]
CTRANSLATE2 = ["ctranslate2>=4.8"]  # the oldest that exports were tried with
# runs a tokenizer.json; transformers itself is only used to compare, if it is there
HUGGINGFACE = ["tokenizers>=0.20"]
SERVE = ["fastapi>=0.110", "prometheus_client>=0.20", "uvicorn>=0.29"]
# MkDocs 2 drops plug-ins; ruff lays out the signatures of the Python API.
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.6,<10", "mkdocstrings[python]>=0.30", "ruff"]
NOTEBOOK = [*PLOT, "ipykernel>=6", "nbclient>=0.10"]  # to open and to run docs/*.ipynb
TEST = [
    *SUMMARIZATION,
    *CTRANSLATE2,
    *HUGGINGFACE,
    *PLOT,
    *SERVE,
    *ZSTD,
    "filelock",
    "httpx",  # for the test client of fastapi
    "psutil",
    "pytest>=8.3",
    "pytest-timeout",
    "pytest-xdist>=3.5",
]
DEV = [*TEST, *DOCS, "mypy", "types-PyYAML", "types-tqdm", "pre-commit"]

# Kernels of a search on a CPU, called through ctypes. Optional: without a compiler that knows GCC's
# vectors, the installation continues, and PyTorch's operators are used.
MODULES = ROOT / "ds_seq" / "modules"
SOURCES = runpy.run_path(str(MODULES / "native_sources.py"))["digest"]()
NATIVE = Extension(
    "ds_seq.modules._native",
    sorted(f"ds_seq/modules/{path.name}" for path in MODULES.glob("native*.c")),
    depends=[f"ds_seq/modules/{path.name}" for path in MODULES.glob("native*.h")],
    define_macros=[("DS_SEQ_SOURCES", f'"{SOURCES}"')],
    extra_compile_args=["-O3", "-Wno-psabi"],
    optional=True,
)

setup(
    name="ds_seq",
    version=read_version(),
    description="Dense and Mixture-of-Experts sequence-to-sequence Transformers on DeepSpeed",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "ds_seq/serving/runs/page/uplot/LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["ds_seq", "ds_seq.*"]),
    package_data={
        "ds_seq": ["py.typed", "serving/page/*", "serving/runs/page/*", "serving/runs/page/uplot/*"]
    },
    ext_modules=[NATIVE],
    cmdclass={"build_py": BuildWithConfigs},
    install_requires=REQUIREMENTS,
    extras_require={
        "test": TEST,
        "dev": DEV,
        "docs": DOCS,
        "notebook": NOTEBOOK,
        "benchmarks": PLOT,
        "plot": PLOT,
        "serve": SERVE,
        "ctranslate2": CTRANSLATE2,
        "huggingface": HUGGINGFACE,
        "zstd": ZSTD,
        "summarization": SUMMARIZATION,
        "summarisation": SUMMARIZATION,  # the name of earlier versions
    },
    entry_points={"console_scripts": ["ds-seq = ds_seq.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Text Processing :: Linguistic",
    ],
)
