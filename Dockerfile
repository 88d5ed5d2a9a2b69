# Builds with BuildKit (docker buildx) or buildah. With buildah add `--format docker`, or the health check is dropped.
# `.ci/container` builds it, runs it and asks it.

FROM rust:1.95-bookworm AS build
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY config config
COPY docs/openapi.json docs/openapi.json
COPY deploy/build deploy/workload deploy/
COPY src src
# Built twice: see deploy/build. `--build-arg GUIDED=no` takes half the time, for a slower program: see docs/performance.md.
ARG GUIDED=yes
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    if [ "$GUIDED" = yes ]; then \
        deploy/build; \
    else \
        cargo build --release --locked --bin unpod-gateway \
        && install -D target/release/unpod-gateway target/guided/unpod-gateway; \
    fi


# The image as a whole: the program, the libraries it is linked with, the certificate authorities by which the upstream is verified
# (`upstream.ca_file` adds one of your own), and a file that lets CMD start with the environment alone.
RUN mkdir -p /image/etc/unpod-gateway /image/usr/local/bin /image/usr/share/doc/unpod-gateway \
    && cp target/guided/unpod-gateway /image/usr/local/bin \
    && ldd target/guided/unpod-gateway | grep -o '/[^ ]*' | xargs cp --parents --dereference --target-directory=/image \
    && cp --parents --dereference /etc/ssl/certs/ca-certificates.crt /image \
    && echo 'hosts: files dns' > /image/etc/nsswitch.conf \
    && echo 'gateway:x:10001:10001::/nonexistent:/usr/sbin/nologin' > /image/etc/passwd \
    && echo 'gateway:x:10001:' > /image/etc/group \
    && echo '# Nothing is set here. Mount a file over this one, or set UNPOD_GATEWAY__SECTION__KEY.' > /image/etc/unpod-gateway/config.toml
COPY LICENSE /image/usr/share/doc/unpod-gateway/LICENSE


# No shell, no package manager: what is not there needs no update and helps nobody who breaks in.
FROM scratch
COPY --from=build /image /
USER 10001:10001

# Stronger than `server.listen` in the configuration file: inside a container loopback reaches nobody.
ENV UNPOD_GATEWAY__SERVER__LISTEN=0.0.0.0:8080
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 CMD ["unpod-gateway", "healthcheck"]
# SIGTERM drains: allow `server.drain_delay` and `server.drain_timeout`, 25 s together, before the kill.
STOPSIGNAL SIGTERM
ENTRYPOINT ["unpod-gateway"]
CMD ["serve", "--config", "/etc/unpod-gateway/config.toml"]

# Last, so that another revision costs no layer: `--build-arg REVISION=$(git rev-parse HEAD)`.
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="unpod-gateway" \
      org.opencontainers.image.description="A caching gateway in front of Unpod's tasks endpoint" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
