# syntax=docker/dockerfile:1
#
#   docker build --target service -t scoter-serving .            what answers requests: no torch, about 0.4 GB
#   docker build --target offline -t scoter-serving-offline .    the `scoter` command: publish jobs, training on CPU
#
# Packages come from locks/, those of the service with their hashes. Pin PYTHON by digest where images must repeat
# to the byte. tests/test_dockerfile.py replays the steps of `service` without a container engine; it maps the
# folders /opt, /src, /dist, /releases, /models and /var/cache/pip, so keep to those.
ARG PYTHON=python:3.11-slim-trixie

FROM ${PYTHON} AS build
ENV PIP_CACHE_DIR=/var/cache/pip PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
WORKDIR /src
COPY locks/build.txt locks/service.txt locks/
RUN --mount=type=cache,target=/var/cache/pip \
    python -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes -r locks/build.txt
# The image needs no pip of its own: the one of the build fills its environment.
RUN --mount=type=cache,target=/var/cache/pip \
    python -m venv --without-pip /opt/scoter \
    && /opt/build/bin/pip --python /opt/scoter/bin/python install --require-hashes -r locks/service.txt
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY offline offline
COPY model_repo/python model_repo/python
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
    && /opt/build/bin/pip --python /opt/scoter/bin/python install --no-deps --no-index /dist/*.whl

FROM build AS offline-build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY locks/dev.txt locks/
# torch alone from its own index, where a wheel without CUDA is; everything else at the versions of the lock.
RUN --mount=type=cache,target=/var/cache/pip \
    /opt/build/bin/pip --python /opt/scoter/bin/python install --no-deps --index-url "$TORCH_INDEX" \
        "$(grep '^torch==' locks/dev.txt)" \
    && /opt/build/bin/pip --python /opt/scoter/bin/python install -c locks/dev.txt "$(echo /dist/*.whl)[offline]"

FROM ${PYTHON} AS offline
# Libraries look up a home and a name, and a numeric user has neither.
ENV PATH=/opt/scoter/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp USER=scoter
COPY --from=offline-build /opt/scoter /opt/scoter
# A volume that is mounted here for the first time takes over its owner.
RUN install -d -o 65532 -g 65532 /models
USER 65532:65532
ENTRYPOINT ["scoter"]

FROM ${PYTHON} AS service
LABEL org.opencontainers.image.title="SCoTER Serving" org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/scoter/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    SCOTER_HOST=0.0.0.0 SCOTER_PORT=8000 SCOTER_RELEASES=/releases
COPY --from=build /opt/scoter /opt/scoter
USER 65532:65532
EXPOSE 8000
# Whether the process answers; whether it can serve is /readyz, which orchestrators ask.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['SCOTER_PORT'] + '/livez', timeout=2)"]
# Exec form: the service is process 1 and meets SIGTERM itself.
ENTRYPOINT ["scoter-serve"]
