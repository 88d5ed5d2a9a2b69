# Builds with BuildKit (docker buildx) or buildah. With buildah add `--format docker`, or the health check is dropped.
# `.ci/container` builds and tests it.

FROM rust:1.95-bookworm AS build
WORKDIR /build
COPY Cargo.toml Cargo.lock build.rs ./
COPY config config
COPY docs docs
COPY deploy/build deploy/workload deploy/
COPY src src
# A profile-guided build; `--build-arg GUIDED=no` takes half the time, for a slower binary: see docs/performance.md.
ARG GUIDED=yes
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    if [ "$GUIDED" = yes ]; then \
        deploy/build; \
    else \
        cargo build --release --locked --bin unpod-gateway \
        && install -D target/release/unpod-gateway target/guided/unpod-gateway; \
    fi


# All files of the image: the binary, its libraries, the CA certificates that verify the upstream (`upstream.ca_file` adds your own), and an
# empty configuration, so that CMD works with environment variables alone.
RUN mkdir -p /image/etc/unpod-gateway /image/usr/local/bin /image/usr/share/doc/unpod-gateway \
    && cp target/guided/unpod-gateway /image/usr/local/bin \
    && ldd target/guided/unpod-gateway | grep -o '/[^ ]*' | xargs cp --parents --dereference --target-directory=/image \
    && cp --parents --dereference /etc/ssl/certs/ca-certificates.crt /image \
    && echo 'hosts: files dns' > /image/etc/nsswitch.conf \
    && echo 'gateway:x:10001:10001::/nonexistent:/usr/sbin/nologin' > /image/etc/passwd \
    && echo 'gateway:x:10001:' > /image/etc/group \
    && echo '# Nothing is set here. Mount a file over this one, or set UNPOD_GATEWAY__SECTION__KEY.' > /image/etc/unpod-gateway/config.toml
COPY LICENSE /image/usr/share/doc/unpod-gateway/LICENSE


# No shell and no package manager: nothing to update, and nothing an intruder could use.
FROM scratch
COPY --from=build /image /
USER 10001:10001

# Overrides `server.listen` in the configuration file: a container's loopback cannot be reached from outside.
ENV UNPOD_GATEWAY__SERVER__LISTEN=0.0.0.0:8080
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 CMD ["unpod-gateway", "healthcheck"]
# SIGTERM drains: allow `server.drain_delay` plus `server.drain_timeout`, 25 s, before SIGKILL.
STOPSIGNAL SIGTERM
ENTRYPOINT ["unpod-gateway"]
CMD ["serve", "--config", "/etc/unpod-gateway/config.toml"]

# Last, so that a new revision does not invalidate a layer: `--build-arg REVISION=$(git rev-parse HEAD)`.
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="unpod-gateway" \
      org.opencontainers.image.description="A caching gateway in front of Unpod's tasks endpoint" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
