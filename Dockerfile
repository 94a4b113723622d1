# launchyard as a container: `make image`, then
#     docker run --rm -v "$PWD:/workspace" launchyard:local --local            (with GPUs: --gpus all --ipc host)
# and, with Ray and S3, for the pods of a Ray cluster: `make image-ray`, docs/guides/kuberay.md.
#
# The base is pinned by version. A digest pins it harder; put the one that your registry shows behind the tag
# (python:3.11.13-slim-bookworm@sha256:…), it differs between mirrors and is therefore not written here.
# Without TORCH_INDEX, PyPI's torch comes with its CUDA libraries; a CPU image takes
#     --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG PYTHON=3.11.13-slim-bookworm

FROM python:${PYTHON} AS build
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/launchyard/bin:$PATH
WORKDIR /src
RUN python -m venv /opt/launchyard

# The packages first, in a layer that changes only with the two files that name them.
COPY constraints.txt pyproject.toml ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
        print(*p['dependencies'], *p['optional-dependencies']['train'], 'hatchling', sep='\n')" > requirements.txt \
    && pip install -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r requirements.txt

# Then launchyard itself, by the build backend that is already there.
COPY LICENSE NOTICE README.md ./
COPY src src
COPY host host
COPY storage storage
COPY run run
COPY model model
COPY training training
COPY launcher launcher
COPY clusters clusters
COPY recipes recipes
RUN pip install -c constraints.txt --no-deps --no-build-isolation . \
    && pip check \
    && launch --version

# Nothing may be here that the pins do not name.
RUN ! pip freeze --exclude launchyard | sed 's/+cpu$//' \
    | grep --invert-match --line-regexp --ignore-case --fixed-strings --file constraints.txt

# The same with what a node of Ray needs, its runs in S3.
FROM build AS build-ray
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']; \
        print(*p['ray'], *p['s3'], sep='\n')" > requirements-ray.txt \
    && pip install -c constraints.txt -r requirements-ray.txt \
    && pip check \
    && ray --version
RUN ! pip freeze --exclude launchyard | sed 's/+cpu$//' \
    | grep --invert-match --line-regexp --ignore-case --fixed-strings --file constraints.txt

# KubeRay asks Ray's health by wget, and KubeRay until 1.3 starts its commands in a login shell, which sets PATH anew.
FROM python:${PYTHON} AS ray
RUN apt-get update && apt-get install --yes --no-install-recommends wget && rm -rf /var/lib/apt/lists/* \
    && echo 'export PATH=/opt/launchyard/bin:$PATH' > /etc/profile.d/launchyard.sh
COPY --from=build-ray /opt/launchyard /opt/launchyard
RUN useradd --create-home --uid 10001 launchyard && install -d -o launchyard /workspace
ENV PATH=/opt/launchyard/bin:$PATH PYTHONUNBUFFERED=1
USER launchyard
WORKDIR /workspace
HEALTHCHECK NONE
CMD ["launch", "--help"]

FROM python:${PYTHON}
COPY --from=build /opt/launchyard /opt/launchyard
RUN useradd --create-home --uid 10001 launchyard && install -d -o launchyard /workspace
ENV PATH=/opt/launchyard/bin:$PATH PYTHONUNBUFFERED=1
USER launchyard
WORKDIR /workspace
# A run's health is in its run directory (`launch status`), not in a probe of the container.
HEALTHCHECK NONE
ENTRYPOINT ["launch"]
CMD ["--help"]
