# Installs the program from the lock file. The program writes no file, so its file system may be
# read-only, and it needs no shell.
FROM python:3.11-slim-bookworm AS build
WORKDIR /build
COPY requirements/runtime.lock ./
RUN python -m venv --without-pip /opt/export-proxy \
 && python -m pip --python /opt/export-proxy/bin/python install \
    --no-cache-dir --disable-pip-version-check --no-deps --only-binary :all: \
    --require-hashes --requirement runtime.lock
COPY proxy /opt/export-proxy/app/proxy
RUN /opt/export-proxy/bin/python -m compileall -q /opt/export-proxy

FROM python:3.11-slim-bookworm
COPY --from=build /opt/export-proxy /opt/export-proxy
COPY LICENSE /opt/export-proxy/
ENV PYTHONPATH=/opt/export-proxy/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 65532:65532
WORKDIR /opt/export-proxy
EXPOSE 8080 9180
STOPSIGNAL SIGTERM
# Asks /healthz, not /readyz: a replica that drains must not be restarted. The command asks loopback
# at the default admin.port; replace it if admin.host or admin.port differs.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["bin/python", "-c", "import urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:9180/healthz', timeout=2)"]
ENTRYPOINT ["/opt/export-proxy/bin/python", "-m", "proxy"]
CMD ["serve", "--config", "/etc/export-proxy/proxy.yaml"]
