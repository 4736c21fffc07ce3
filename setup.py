"""Packaging. The folder kernels/ installs as `vatt_kernels`: a top-level `kernels` collides with Hugging Face's."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

# Ranges, which say what may work; constraints.txt says what `make` installs, reports/compat.md what was tried.
EXTRAS = {
    "xformers": ["xformers>=0.0.35"],
    "dali": ["nvidia-dali-cuda130>=2.0; sys_platform == 'linux'", "av>=14.2"],
    "archive": ["lancedb>=0.40"],  # the first tried; its table format is stable, its Python names are young
    "serve": ["gradio>=6.0,<7"],
    "tensorboard": ["tensorboard>=2.15"],
    "bench": ["pandas>=2.2", "matplotlib>=3.9", "pytest-benchmark>=5.0"],
    "features": ["pandas>=2.2", "pyarrow>=15"],
    "figures": ["scikit-learn>=1.5", "matplotlib>=3.9"],
    "hub": ["huggingface_hub>=0.25"],
    "official": ["google-crc32c>=1.5"],
    "webdataset": ["webdataset>=1.0"],
    "remote": ["fsspec[http]>=2024.6"],
    "ray": ["ray>=2.40; python_version < '3.14'"],
    "words": ["gensim>=4.3"],  # fastText's .bin alone; other word vectors need nothing
    "test": [
        "pytest>=8.0",
        "pytest-xdist>=3.5",
        "pytest-timeout>=2.3",
        "pytest-benchmark>=5.0",
        "hypothesis>=6.100",
        "packaging>=24.0",
        "selenium>=4.20",  # drives a browser, where there is one
        "setuptools>=70.1",  # the first that makes wheels alone; the tests build one
    ],
    "dev": ["ruff>=0.9", "mypy>=1.14"],
    "docs": ["mkdocs-material>=9.6,<10", "mkdocstrings-python>=1.16"],  # make docs
}
# The tests cover what these extras bring.
EXTRAS["test"] += EXTRAS["figures"] + EXTRAS["features"] + EXTRAS["hub"] + EXTRAS["official"] + EXTRAS["webdataset"]
EXTRAS["test"] += EXTRAS["archive"] + EXTRAS["serve"] + ["fsspec[http]>=2024.6"]  # http: servers on loopback
EXTRAS["all"] = sorted({requirement for extra in EXTRAS.values() for requirement in extra})


def version() -> str:
    """Return `vatt.__version__` without importing vatt, whose requirements are not there yet."""
    found = re.search(r'^__version__ = "([^"]+)"$', (ROOT / "vatt" / "__init__.py").read_text("utf-8"), re.MULTILINE)
    assert found, "vatt/__init__.py gives no __version__"
    return found[1]


setup(
    name="vatt",
    version=version(),
    description="VATT (video-audio-text transformers) in PyTorch, with fused token-drop kernels",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=[f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13, 14)] + ["Typing :: Typed"],
    python_requires=">=3.11",
    packages=[
        *find_packages(ROOT, include=["vatt", "vatt.*"]),
        "vatt_kernels",
        *(f"vatt_kernels.{name}" for name in find_packages(ROOT / "kernels")),
    ],
    package_dir={"vatt_kernels": "kernels"},
    package_data={"vatt": ["py.typed"], "vatt_kernels": ["py.typed", "measured_launches.json"]},
    entry_points={"console_scripts": ["vatt = vatt.__main__:main"]},
    install_requires=[
        "torch>=2.11,<2.16",
        "triton>=3.6,<3.10; sys_platform == 'linux' and platform_machine == 'x86_64'",
        "numpy>=2.0",
        "av>=14.1",  # 14.0 tells no cover picture from a video; 19 has no wheel for Python 3.11
        "safetensors>=0.4.5",
        "tqdm>=4.66",
    ],
    extras_require=EXTRAS,
)
