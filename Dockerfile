# One worker of Verity Stream. `docker compose up` builds it.
FROM python:3.13-slim AS build
WORKDIR /src
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# First what changes seldom: the layer of the dependencies is reused while the lock is the same.
COPY requirements-worker.lock ./
RUN python -m venv /opt/verity \
 && /opt/verity/bin/pip install --require-hashes -r requirements-worker.lock
COPY pyproject.toml README.md LICENSE ./
COPY verity_common ./verity_common
COPY verity_sdk ./verity_sdk
COPY connectors ./connectors
COPY verity_stream ./verity_stream
RUN /opt/verity/bin/pip install --no-deps --no-build-isolation .

FROM python:3.13-slim
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/verity verity
COPY --from=build /opt/verity /opt/verity
ENV PATH=/opt/verity/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    VERITY_CONFIG=/etc/verity/verity.toml
USER 10001
WORKDIR /var/lib/verity
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:6066/healthz', timeout=4)"]
CMD ["faust", "-A", "verity_stream", "worker"]
