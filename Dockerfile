# For a CPU:         docker build --tag vpvae .
# For NVIDIA GPUs:   docker build --tag vpvae --build-arg BASE=nvidia/cuda:13.0.3-base-ubuntu24.04 .
# Then, for example: docker run --rm --volume "$PWD:/data" vpvae info my_tokenizer    (with GPUs: --gpus all)
ARG BASE=ubuntu:24.04
FROM ${BASE}

# Triton compiles launchers of the CUDA kernels when they are first used, and PESQ is compiled when it is installed.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

RUN python3 -m venv /opt/vpvae
ENV PATH=/opt/vpvae/bin:$PATH

# Where pip also looks for packages. An index of CPU builds of torch leaves out several GB of CUDA libraries.
ARG PIP_EXTRA_INDEX_URL=
ARG EXTRAS=all
COPY . /tmp/vpvae_hf
WORKDIR /tmp/vpvae_hf
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt ".[${EXTRAS}]" && vpvae --version

RUN useradd --create-home --uid 10001 vpvae && install --directory --owner vpvae /data
USER 10001
WORKDIR /data
ENTRYPOINT ["vpvae"]
CMD ["--help"]
