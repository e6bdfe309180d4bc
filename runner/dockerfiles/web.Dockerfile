# The control plane: web, front, worker and reconciler are this image with different commands (compose.yaml).
#   docker build -f runner/dockerfiles/web.Dockerfile -t clavier/web .
# INSTALL=no: BASE_IMAGE brings the compiler and requirements.txt already (a site without a package index).
ARG BASE_IMAGE=python:3.11-slim

# The small static program that runs inside every container of a user; only its binary goes on.
FROM ${BASE_IMAGE} AS wrapper
ARG INSTALL=yes
RUN if [ "$INSTALL" = yes ]; then \
      apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi
COPY runner/executors/container_wrapper.c /src/
RUN cc -static -O2 -s -Wall -Wextra -o /wrapper /src/container_wrapper.c

FROM ${BASE_IMAGE}
ARG INSTALL=yes
LABEL org.opencontainers.image.title="Clavier control plane" \
      org.opencontainers.image.licenses="MIT"
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPATH=/opt/clavier:/opt/clavier/platform \
    DJANGO_SETTINGS_MODULE=clavier.config.settings
WORKDIR /opt/clavier
COPY requirements.txt ./
RUN if [ "$INSTALL" = yes ]; then pip install --no-cache-dir -r requirements.txt; fi
COPY --from=wrapper /wrapper /opt/clavier/wrapper
COPY manage.py ./
COPY templates templates
COPY runner runner
COPY datasets_app datasets_app
COPY models_app models_app
COPY finetune_app finetune_app
COPY evaluation_app evaluation_app
COPY inference_app inference_app
COPY platform platform
# Files of tenants get groups of their own, which only root may give; compose.yaml leaves it three capabilities.
USER 0
CMD ["python", "manage.py", "up", "--host", "0.0.0.0"]
