"""Packaging. The folder kernels/ installs as `vatt_kernels`: a top-level `kernels` collides with Hugging Face's."""

from pathlib import Path

from setuptools import setup

EXTRAS = {
    "xformers": ["xformers>=0.0.35"],
    "dali": ["nvidia-dali-cuda130>=2.0; sys_platform == 'linux'"],
    "tensorboard": ["tensorboard>=2.15"],
    "bench": ["pandas>=2.2", "matplotlib>=3.9", "pytest-benchmark>=5.0"],
    "features": ["pandas>=2.2", "pyarrow>=15"],
    "figures": ["scikit-learn>=1.5", "matplotlib>=3.9"],
    "hub": ["huggingface_hub>=0.25"],
    "probe": ["scikit-learn>=1.5"],
    "official": ["google-crc32c>=1.5"],
    "webdataset": ["webdataset>=1.0"],
    "test": ["pytest>=8.0", "pytest-xdist>=3.5", "pytest-timeout>=2.3", "pytest-benchmark>=5.0", "hypothesis>=6.100"],
    "dev": ["ruff>=0.9", "mypy>=1.14"],
}
# The tests cover what these extras bring.
EXTRAS["test"] += EXTRAS["figures"] + EXTRAS["features"] + EXTRAS["hub"] + EXTRAS["official"] + EXTRAS["webdataset"]
EXTRAS["all"] = sorted({requirement for extra in EXTRAS.values() for requirement in extra})

setup(
    name="vatt",
    version="0.1.0",
    description="VATT (video-audio-text transformers) in PyTorch, with fused token-drop kernels",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=["vatt", "vatt.model", "vatt.data", "vatt.official", "vatt.runtime", "vatt_kernels"],
    package_dir={"vatt_kernels": "kernels"},
    install_requires=[
        "torch>=2.11,<2.14",
        "triton>=3.6,<3.8; sys_platform == 'linux' and platform_machine == 'x86_64'",
        "numpy>=2.0",
        "av>=14.0",
        "safetensors>=0.4.5",
        "tqdm>=4.66",
    ],
    extras_require=EXTRAS,
)
