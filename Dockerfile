# Four targets of one service, each with what its role needs (docs/deployment.md):
#
#   docker build --target serve       -t ml-workbench:serve .        answers predictions: no torch, no polars, no MLflow
#   docker build --target control     -t ml-workbench:control .      control plane whose trainings run on a Ray cluster
#   docker build --target train       -t ml-workbench:train --build-arg TORCH_INDEX_URL=… .
#   docker build --target train-cuda  -t ml-workbench:train-cuda .   everything: one machine's service, a cluster's nodes
#
# The torch wheel brings its own CUDA libraries, so none needs a CUDA base image; the host's driver and container
# toolkit do. TORCH_INDEX_URL is a package index with CPU builds of torch (torch's installation page names one): it makes
# the train image some gigabytes smaller, and without it that image works too. No secret enters the build or an image.

FROM python:3.12-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
RUN python -m pip install --no-cache-dir "uv>=0.9,<1" && python -m venv --without-pip /opt/venv
WORKDIR /build
COPY deploy/requirements ./

FROM build AS build-serve
RUN uv pip install --no-cache --python /opt/venv/bin/python -r serve.txt

FROM build AS build-control
RUN uv pip install --no-cache --python /opt/venv/bin/python -r control.txt

FROM build AS build-train
ARG TORCH_INDEX_URL=""
RUN if [ -n "$TORCH_INDEX_URL" ]; then \
      uv pip install --no-cache --python /opt/venv/bin/python --no-deps --index-url "$TORCH_INDEX_URL" \
        "$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' train.txt)"; \
    fi \
    && uv pip install --no-cache --python /opt/venv/bin/python -r train.txt

FROM build AS build-train-cuda
RUN uv pip install --no-cache --python /opt/venv/bin/python -r train.txt

FROM python:3.12-slim AS service
RUN groupadd --gid 10001 workbench \
    && useradd --uid 10001 --gid workbench --home-dir /app --shell /usr/sbin/nologin workbench \
    && mkdir -p /app/model_registry /app/.workbench /app/logs \
    && chown -R workbench:workbench /app
WORKDIR /app
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOST=0.0.0.0 \
    PORT=8005 \
    LOG_FORMAT=json \
    MODEL_REGISTRY_PATH=/app/model_registry \
    STATE_DIR=/app/.workbench \
    LOG_DIR=/app/logs
COPY --chown=workbench:workbench LICENSE README.md ./
COPY --chown=workbench:workbench common_lib ./common_lib
COPY --chown=workbench:workbench ml_workbench_client ./ml_workbench_client
COPY --chown=workbench:workbench ml_workbench_figures ./ml_workbench_figures
COPY --chown=workbench:workbench ml_workbench_service ./ml_workbench_service
COPY --chown=workbench:workbench tools ./tools
# by number, so that `runAsNonRoot` can check it
USER 10001:10001
VOLUME ["/app/model_registry", "/app/.workbench", "/app/logs"]
EXPOSE 8005 8006
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/health', timeout=2)"]
STOPSIGNAL SIGTERM
CMD ["python", "-m", "ml_workbench_service.main"]

FROM service AS serve
COPY --from=build-serve /opt/venv /opt/venv

FROM service AS control
COPY --from=build-control /opt/venv /opt/venv

FROM service AS train-cuda
# LightGBM's own library looks for the system's OpenMP.
USER root
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
USER 10001:10001
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-train-cuda /opt/venv /opt/venv

FROM service AS train
USER root
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
USER 10001:10001
COPY --from=build-train /opt/venv /opt/venv
