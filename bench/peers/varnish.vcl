# Varnish as a gateway in front of Unpod. It logs to shared memory; no varnishncsa runs, which is to its advantage.
vcl 4.1;

backend unpod {
    .host = "127.0.0.1";
    .port = "@UPSTREAM_PORT@";
}

sub vcl_recv {
    if (req.http.Authorization != "Token @KEY@" && req.http.Authorization != "Bearer @KEY@") {
        return (synth(401));
    }
    if (req.method != "GET" && req.method != "HEAD") {
        return (synth(405));
    }
    if (req.url !~ "^/spaces/[A-Za-z0-9_-]+/tasks/?\?page=[0-9]+&page_size=[0-9]+$") {
        return (synth(404));
    }
    unset req.http.Authorization;
    unset req.http.Cookie;
    set req.url = regsub(req.url, "^/spaces/([A-Za-z0-9_-]+)/tasks/?\?", "/api/v2/platform/spaces/\1/tasks/?");
    return (hash);
}

sub vcl_hash {
    hash_data(req.url);
    return (lookup);
}

sub vcl_backend_fetch {
    set bereq.http.Authorization = "Token @UPSTREAM_TOKEN@";
    set bereq.http.Accept-Language = "en";
    # Compression is done here, if at all.
    unset bereq.http.Accept-Encoding;
}

sub vcl_backend_response {
    # The upstream varies by headers that are not forwarded.
    unset beresp.http.Vary;
    set beresp.do_gzip = @DO_GZIP@;
    set beresp.ttl = 1h;
    set beresp.grace = 1m;
}
