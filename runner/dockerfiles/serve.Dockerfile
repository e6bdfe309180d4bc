# What replicas on GPUs run in: vLLM's own image with our serving programs.
#   docker build -f runner/dockerfiles/serve.Dockerfile -t clavier/serve .
# Pin the base in production: --build-arg BASE_IMAGE=vllm/vllm-openai@sha256:...
ARG BASE_IMAGE=vllm/vllm-openai:latest
FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="Clavier programs: serving" \
      org.opencontainers.image.licenses="MIT"
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPATH=/opt/clavier
WORKDIR /opt/clavier
# Where the executor looks for an interpreter unless DOCKER_PROGRAM_PYTHON says otherwise.
RUN test -e /usr/local/bin/python3 || ln -s "$(command -v python3)" /usr/local/bin/python3
COPY runner/__init__.py runner/
COPY runner/contract runner/contract
COPY runner/programs runner/programs
# The platform gives every tenant a user of its own; this one is for everybody else who starts the image.
USER 65534:65534
# The base starts its server by itself; here a program decides what is started.
ENTRYPOINT []
CMD ["python3", "-c", "import vllm; print('vllm', vllm.__version__)"]
