# sltt-bench with CUDA: docker build -t sltt-bench . && docker run --gpus all -v "$PWD/results:/work/results" sltt-bench doctor
FROM python:3.12-slim
# The native backend's kernels: Triton builds its launcher with a C compiler.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 bench
COPY . /opt/sltt-bench
RUN pip install --no-cache-dir "/opt/sltt-bench[events]" && rm -rf /opt/sltt-bench
USER 1000
WORKDIR /work
ENTRYPOINT ["sltt-bench"]
CMD ["--help"]
