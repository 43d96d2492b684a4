# Three images from one file: `web` is the base install, which serves pages; `worker` adds what
# agreement figures and Parquet files need; `trainer` adds torch for judges and training.
#   docker build --target web -t prefloop-web .
#   docker build --target worker -t prefloop-worker .
#   docker build --target trainer -t prefloop-trainer .       pip's torch, which brings CUDA
# With --build-arg TORCH_INDEX=URL, torch comes from there: PyTorch's index of CPU wheels makes a
# much smaller image for machines without a GPU. With --build-arg EXTRAS=fleet, what speaks to S3 is
# added, for machines that share no folder (docs/scaling.md).
#
# What builds stays behind in the stages above `application`: an image holds Python, the virtual
# environment and the code, and runs as a user without rights.

FROM python:3.12-slim AS build
ARG EXTRAS=team,oidc
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/venv/bin:$PATH
RUN python -m venv /venv
WORKDIR /src
COPY pyproject.toml README.md ./
# hadolint ignore=DL3013
RUN pip install ".[${EXTRAS}]"

FROM build AS build-worker
ARG EXTRAS=team,oidc
# hadolint ignore=DL3013
RUN pip install ".[${EXTRAS},stats,parquet]"

FROM build-worker AS build-trainer
ARG EXTRAS=team,oidc
ARG TORCH_INDEX=
# hadolint ignore=DL3013
RUN pip install --no-deps ${TORCH_INDEX:+--extra-index-url $TORCH_INDEX} \
        "$(sed -n 's/^ *"\(torch==[0-9.]*\)",*$/\1/p' pyproject.toml)" \
    && pip install ".[${EXTRAS},train,crowd]"

FROM python:3.12-slim AS application
RUN useradd --create-home --uid 1000 prefloop && install -d -o prefloop /data
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 DEBUG=0 PREFLOOP_STORAGE=/data
WORKDIR /app
COPY . .
USER 1000
VOLUME /data

FROM application AS trainer
COPY --from=build-trainer /venv /venv
# The queues of the memory classes that this machine's GPU holds, beside `gpu`: docs/scaling.md.
CMD ["sh", "-c", "exec celery -A config worker --queues \"$(python manage.py queues)\" \
     --concurrency 1 --max-memory-per-child 250000"]

FROM application AS worker
COPY --from=build-worker /venv /venv
CMD ["celery", "-A", "config", "worker", "--queues", "web", "--concurrency", "2"]

FROM application AS web
COPY --from=build /venv /venv
# The processes count requests together there: see config/metrics.py.
ENV PROMETHEUS_MULTIPROC_DIR=/dev/shm/prefloop-metrics
EXPOSE 8000
CMD ["gunicorn", "config.wsgi:application", "--bind", "0.0.0.0:8000", "--worker-class", "gthread", \
     "--workers", "2", "--threads", "8", "--worker-tmp-dir", "/dev/shm", "--no-control-socket"]
