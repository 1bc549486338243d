# The queue, its workers and the server, for an NVIDIA GPU. Not built or run by this project's tests.
FROM pytorch/pytorch:2.11.0-cuda13.0-cudnn9-runtime

RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 radial

WORKDIR /opt/radial
COPY . .
# torch comes with the image; Triton compiles its kernels with gcc on first use.
RUN grep -v '^torch==\|^triton==' constraints.txt > /tmp/constraints.txt \
    && pip install --no-cache-dir -c /tmp/constraints.txt '.[server]'

USER radial
ENV RADIAL_DATA_DIR=/data HF_HOME=/models PYTHONUNBUFFERED=1
WORKDIR /data
VOLUME ["/data", "/models"]
HEALTHCHECK --interval=30s --start-period=60s \
    CMD python -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/healthz', timeout=5)"
# The worker stops after the step it is at, and the job goes on from there.
STOPSIGNAL SIGTERM
ENTRYPOINT ["radial"]
CMD ["serve"]
