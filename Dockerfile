# How to run it: deploy/compose.yaml with PostgreSQL, Valkey and TLS, deploy/kubernetes.yaml on a cluster.
FROM python:3.12-slim AS build
WORKDIR /src
RUN python -m venv /opt/identity
ENV PATH=/opt/identity/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# The lock comes first and alone: while it stays the same, this layer is not built again.
COPY requirements.txt ./
RUN pip install --no-deps --require-hashes --only-binary :all: -r requirements.txt && pip check
COPY setup.cfg pyproject.toml README.md ./
COPY identity ./identity
RUN pip install --no-build-isolation --no-deps . && pip uninstall --yes setuptools pip

FROM python:3.12-slim
# A number as well as a name, so that an orchestrator can verify that it is not root.
RUN groupadd --system --gid 10001 identity \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin identity \
    && install -d -o 10001 -g 10001 -m 0700 /app/var /app/keys
COPY --from=build /opt/identity /opt/identity
COPY wsgi.py /app/wsgi.py
WORKDIR /app
ENV PATH=/opt/identity/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 IDENTITY_BIND=0.0.0.0:8000
USER 10001:10001
VOLUME ["/app/var", "/app/keys"]
EXPOSE 8000
# No shell tool is in the image to ask with; Python is. Not ready is a 503, which urlopen raises.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/ready', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["identity"]
CMD ["serve"]
