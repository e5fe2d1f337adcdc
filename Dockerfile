# Bitwright on processors:   docker build -t bitwright .   then   docker run --rm -v "$PWD:/work" bitwright quantize demo out
FROM python:3.11-slim

# torch with a version of its own: pip takes the build for processors; an open range may bring gigabytes of CUDA.
RUN pip install --no-cache-dir torch==2.13.0
COPY pyproject.toml README.md LICENSE /src/
COPY src /src/src
RUN pip install --no-cache-dir "/src[gguf,compressed-tensors,finetune,vision]" && rm -rf /src

# Models that are unpacked or converted stay in the volume when the container goes.
ENV BITWRIGHT_CACHE=/work/.bitwright-cache
WORKDIR /work
ENTRYPOINT ["bitwright"]
CMD ["--help"]
