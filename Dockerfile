# Builds with BuildKit (docker buildx) or buildah. With buildah add `--format docker`, or the health check is dropped.
# `.ci/container` builds it, runs it and asks it.

FROM rust:1.95-bookworm AS build
WORKDIR /build
# The dependencies are a layer of their own, over a program that does nothing: it changes with these two files alone.
COPY Cargo.toml Cargo.lock ./
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    mkdir src \
    && touch src/lib.rs \
    && echo 'fn main() {}' > src/main.rs \
    && cargo build --release --locked --bin unpod-gateway
COPY config config
COPY docs/openapi.json docs/openapi.json
COPY src src
# `touch`: a copied file keeps its time, which may lie before that of the program that does nothing.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    touch src/lib.rs src/main.rs \
    && cargo build --release --locked --bin unpod-gateway


FROM debian:bookworm-slim
# The certificate authorities by which the upstream is verified; `upstream.ca_file` adds one of your own.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
# The file lets CMD start with the environment alone, too.
RUN groupadd --gid 10001 gateway \
    && useradd --uid 10001 --gid gateway --no-log-init --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin gateway \
    && install -d /etc/unpod-gateway \
    && echo '# Nothing is set here. Mount a file over this one, or set UNPOD_GATEWAY__SECTION__KEY.' > /etc/unpod-gateway/config.toml
COPY LICENSE /usr/share/doc/unpod-gateway/LICENSE
COPY --from=build /build/target/release/unpod-gateway /usr/local/bin/unpod-gateway
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
