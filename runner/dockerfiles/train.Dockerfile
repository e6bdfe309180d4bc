# What the platform's programs run in: training, evaluation, serving on a CPU, imports (DOCKER_PROGRAM_IMAGE).
#   docker build -f runner/dockerfiles/train.Dockerfile -t clavier/train .
# Pin the base in production: --build-arg BASE_IMAGE=pytorch/pytorch@sha256:...
# INSTALL=no: BASE_IMAGE brings requirements-train.txt already (a site without a package index).
ARG BASE_IMAGE=pytorch/pytorch:latest
FROM ${BASE_IMAGE}
ARG INSTALL=yes
LABEL org.opencontainers.image.title="Clavier programs: training" \
      org.opencontainers.image.licenses="MIT"
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPATH=/opt/clavier
WORKDIR /opt/clavier
COPY requirements-train.txt ./
# The base's own torch stays: it is built for the base's CUDA.
RUN if [ "$INSTALL" = yes ]; then \
      grep -v '^torch==' requirements-train.txt > /tmp/requirements.txt && \
      pip install --no-cache-dir -r /tmp/requirements.txt && rm /tmp/requirements.txt; \
    fi
# Where the executor looks for an interpreter unless DOCKER_PROGRAM_PYTHON says otherwise.
RUN test -e /usr/local/bin/python3 || ln -s "$(command -v python3)" /usr/local/bin/python3
COPY runner/__init__.py runner/
COPY runner/contract runner/contract
COPY runner/programs runner/programs
# The platform gives every tenant a user of its own; this one is for everybody else who starts the image.
USER 65534:65534
CMD ["python3", "-c", "import torch; print('torch', torch.__version__, 'GPUs:', torch.cuda.device_count())"]
