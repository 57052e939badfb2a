"""The setting to change, by finding and by the program that has it. `docs/doctor.md` shows these very texts.

Sources, each read for what it is cited for:
- nginx: nginx.org/en/docs/http/, ngx_http_proxy_module, ngx_http_gzip_module, ngx_http_core_module, ngx_http_v2_module
- Caddy: caddyserver.com/docs/caddyfile/directives/, reverse_proxy (Streaming), encode, request_body, handle_path, and
  caddyserver.com/docs/caddyfile/options. It flushes text/event-stream by itself; flush_interval -1 does not, but keeps
  the request to the hub when the client leaves. `encode` matches text/* and leaves `no-transform` alone.
- Apache: httpd.apache.org/docs/2.4/mod/, mod_proxy (flushpackets is for AJP and FastCGI alone), mod_deflate,
  mod_brotli, mod_buffer, mod_http2, core. mod_proxy_http flushes whenever the hub pauses (proxy_http_process_response).
- Cloudflare: developers.cloudflare.com, fundamentals/reference/connection-limits (Proxy Read Timeout), speed (Content
  compression), cache/how-to/cache-rules
- cookies and preflights: nginx's proxy_cookie_path, Caddy's header_down, Apache's ProxyPassReverseCookiePath;
  developers.cloudflare.com/cloudflare-one, CORS; AWS listener rules (http-request-method)
- AWS: docs.aws.amazon.com/elasticloadbalancing/latest/application, load balancer and listener attributes
"""

from collections.abc import Mapping

Advice = Mapping[str, str]  # who -> what to set

HUB, NGINX, CADDY, APACHE, CLOUDFLARE, ALB = "hub", "nginx", "Caddy", "Apache", "Cloudflare", "AWS ALB"
NO_SETTING = "no such setting; look at what stands before and behind it"

ADVICE: Mapping[str, Advice] = {
    "buffering": {
        NGINX: "proxy_buffering off; and no `proxy_ignore_headers X-Accel-Buffering`, by which the hub turns it off",
        CADDY: "no response_buffers in reverse_proxy; event streams are passed on at once without any setting",
        APACHE: "no filter on this path (SetOutputFilter BUFFER, SUBSTITUTE, DEFLATE): mod_proxy_http passes on at"
        " once; for FastCGI or AJP: ProxyPass ... flushpackets=on",
        CLOUDFLARE: "no rule that rewrites or caches this path; quick tunnels (trycloudflare.com) carry no streams",
        ALB: NO_SETTING,
    },
    "compression": {
        NGINX: "gzip_types without text/event-stream and *, or `gzip off;` in this location; brotli_types as well",
        CADDY: "keep the hub's `Cache-Control: no-transform`, which encode respects; or `@rest not path */events` and"
        " `encode @rest`",
        APACHE: 'SetEnvIf Request_URI "/events$" no-gzip no-brotli',
        CLOUDFLARE: "keep the hub's `Cache-Control: no-transform`; a Compression Rule for this path: Disable",
        ALB: NO_SETTING,
    },
    "headers": {
        NGINX: "no `expires`, `add_header Cache-Control` or `proxy_hide_header Cache-Control` here; proxy_cache off;",
        CADDY: "no `header` or `header_down` for Cache-Control here",
        APACHE: "no `Header set Cache-Control` here; ExpiresActive Off; CacheDisable on",
        CLOUDFLARE: "a Cache Rule for this path: Bypass cache; Browser Cache TTL: Respect Existing Headers",
        ALB: NO_SETTING,
    },
    "idle": {
        HUB: "a heartbeat shorter than the limit: --heartbeat 5s",
        NGINX: "proxy_read_timeout 1h; (60 s unless set)",
        CADDY: "no `read_timeout` in `transport http` of reverse_proxy (none unless set)",
        APACHE: "ProxyPass ... timeout=3600 (else ProxyTimeout, else Timeout, which is 60 s)",
        CLOUDFLARE: "about 100 s, and to be raised with Enterprise alone: keep the heartbeat below it",
        ALB: "idle_timeout.timeout_seconds=3600 (1 to 4000; 60 unless set)",
    },
    "duration": {
        HUB: "nothing: clients come back and resume; each time costs a connection",
        NGINX: NO_SETTING,
        CADDY: "no `stream_timeout` in reverse_proxy and no `timeouts { write }` in the global option servers",
        APACHE: NO_SETTING,
        CLOUDFLARE: NO_SETTING,
        ALB: NO_SETTING,
    },
    "heartbeat": {
        HUB: "--heartbeat 15s, or less than the shortest limit on the way",
        NGINX: "as for buffering",
        CADDY: "as for buffering",
        APACHE: "as for buffering",
        CLOUDFLARE: "as for buffering",
        ALB: NO_SETTING,
    },
    "http": {
        HUB: "or a host name of its own for streams; or static/sse-app.js: one stream for all tabs of a page",
        NGINX: "https with `http2 on;` (before 1.25.1: `listen 443 ssl http2;`)",
        CADDY: "https; HTTP/2 is then on, unless `protocols` in the global option servers leaves h2 out",
        APACHE: "https with `Protocols h2 http/1.1` (mod_http2; not with the prefork MPM)",
        CLOUDFLARE: "https; HTTP/2 is then on, unless it was turned off in the zone's settings",
        ALB: "an HTTPS listener, with routing.http2.enabled=true (it is unless set)",
    },
    "resume": {
        NGINX: "proxy_pass_request_headers on; (it is unless set) and no `proxy_set_header Last-Event-ID` with another"
        " value than $http_last_event_id",
        CADDY: "no `header_up -Last-Event-ID` in reverse_proxy, no `request_header -Last-Event-ID`",
        APACHE: "no `RequestHeader unset Last-Event-ID`",
        CLOUDFLARE: "no Request Header Transform Rule that removes Last-Event-ID",
        ALB: "passes it on; a CloudFront before it needs an origin request policy such as AllViewer",
    },
    "query": {
        NGINX: "where proxy_pass has variables or a rewrite is near, end the address with $is_args$args",
        CADDY: "no `rewrite` or `uri` that drops the query",
        APACHE: "no `noquery` in ProxyPass, no RewriteRule with QSD or with a ? at its end",
        CLOUDFLARE: "no URL Rewrite Rule for the query of this path",
        ALB: "no rule that rewrites the query; a CloudFront before it: an origin request policy with all of the query",
    },
    "end": {
        NGINX: "proxy_ignore_client_abort off; (it is unless set)",
        CADDY: "no `flush_interval -1` in reverse_proxy: it keeps the request to the hub when the client has left, and"
        " event streams need no flush_interval",
        APACHE: "no setting: it looks for the client when it writes, so within two heartbeats; --heartbeat 5s for less",
        CLOUDFLARE: NO_SETTING,
        ALB: NO_SETTING,
    },
    "cors": {
        HUB: "--cors-origins with the page's origin",
        NGINX: "no `proxy_hide_header Access-Control-Allow-Origin`; no `add_header` for it, the hub sends it",
        CADDY: "no `header` or `header_down` for Access-Control-Allow-Origin",
        APACHE: "no `Header unset` or `Header set Access-Control-Allow-Origin`",
        CLOUDFLARE: "no Response Header Transform Rule for Access-Control-Allow-Origin",
        ALB: "the listener's routing.http.response.access_control_allow_origin.header_value: leave it empty",
    },
    "body": {
        NGINX: "client_max_body_size 1m; (it is unless set)",
        CADDY: "request_body { max_size 1MiB } (no limit unless set)",
        APACHE: "LimitRequestBody 1048576; with ModSecurity, SecRequestBodyNoFilesLimit 1048576 as well",
        CLOUDFLARE: "takes 100 MB and more; look for a WAF rule on the size of bodies",
        ALB: "has no limit; AWS WAF's SizeRestrictions_BODY blocks more than 8 KB: except this path",
    },
    "host": {
        HUB: "--allowed-hosts with the public name, or with the one that the proxy sends",
        NGINX: "proxy_set_header Host $http_host; (unless set, it sends the name in proxy_pass; $host is without the"
        " port)",
        CADDY: "no `header_up Host` in reverse_proxy: it passes the public name on",
        APACHE: "ProxyPreserveHost On (unless set, it sends the name in ProxyPass)",
        CLOUDFLARE: "no Origin Rule that overrides the Host header",
        ALB: "routing.http.preserve_host_header.enabled=true",
    },
    "path": {
        HUB: "URL is the address below which /events and /broadcast are; `curl URL/healthz` says ok there",
        NGINX: "location /hub/ { proxy_pass http://127.0.0.1:8000/; } with both slashes takes /hub off",
        CADDY: "handle_path /hub/* { reverse_proxy 127.0.0.1:8000 } takes /hub off",
        APACHE: 'ProxyPass "/hub/" "http://127.0.0.1:8000/" with both slashes takes /hub off',
        CLOUDFLARE: "no rule that redirects or rewrites this path",
        ALB: "a listener rule for this path that forwards to the hub",
    },
    "upstream": {
        HUB: "is it running, and does it listen where the proxy looks for it (--host, --port)?",
        NGINX: "the address in proxy_pass; its error_log says why",
        CADDY: "the address in reverse_proxy; its log says why",
        APACHE: "the address in ProxyPass; its ErrorLog says why",
        CLOUDFLARE: "the origin's DNS record and port; its firewall has to let Cloudflare's addresses in",
        ALB: "the target group's port and health check: path /healthz",
    },
    "full": {
        HUB: "--max-subscribers, and file descriptors for as many (ulimit -n); /readyz tells whether it is stopping",
        NGINX: "worker_connections: two for each stream; worker_rlimit_nofile as many and more",
        CADDY: "file descriptors, two for each stream: LimitNOFILE in its systemd unit",
        APACHE: "MaxRequestWorkers: each stream that is passed on keeps a worker busy",
        CLOUDFLARE: NO_SETTING,
        ALB: NO_SETTING,
    },
    "access": {
        NGINX: "auth_basic, auth_request, deny: what guards this path",
        CADDY: "basic_auth, forward_auth: what guards this path",
        APACHE: "Require: what guards this path",
        CLOUDFLARE: "Access, WAF and Bot rules: an EventSource cannot solve a challenge",
        ALB: "authenticate actions and AWS WAF: an EventSource cannot follow a login",
    },
    "token": {
        HUB: "nothing, if it is to be open; else --auth-file, --token-secret or --token-keys",
        NGINX: 'no `proxy_set_header Authorization ""`; it is passed on unless set',
        CADDY: "no `header_up -Authorization` in reverse_proxy, no `request_header -Authorization`",
        APACHE: "no `RequestHeader unset Authorization`; it is passed on unless set",
        CLOUDFLARE: "no Request Header Transform Rule that removes Authorization",
        ALB: "passes it on; a CloudFront before it needs an origin request policy such as AllViewer",
    },
    "preflight": {
        HUB: "--cors-origins with the page's origin",
        NGINX: "no auth_basic, auth_request or limit_except for OPTIONS here: browsers send it without Authorization",
        CADDY: "basic_auth and forward_auth with a matcher `not method OPTIONS`",
        APACHE: "Require within <LimitExcept OPTIONS>",
        CLOUDFLARE: "an Access application: bypass OPTIONS requests to the origin",
        ALB: "before authenticate actions a rule for the method OPTIONS that forwards to the hub",
    },
    "ticket": {
        HUB: "an app that is told its prefix (root_path) sets the public path",
        NGINX: "proxy_cookie_path /events $uri; where a prefix is taken off; no `proxy_hide_header Set-Cookie`, no"
        ' `proxy_set_header Cookie ""`',
        CADDY: "header_down Set-Cookie Path=/events Path=/hub/events where /hub is taken off; no `header_up -Cookie`",
        APACHE: 'ProxyPassReverseCookiePath "/" "/hub/" where /hub is taken off; no `RequestHeader unset Cookie`',
        CLOUDFLARE: "no Transform Rule that removes Set-Cookie or Cookie",
        ALB: "passes cookies on; a CloudFront before it needs an origin request policy such as AllViewer",
    },
    "clock": {
        HUB: "chrony or systemd-timesyncd on its machine, and on this one",
        NGINX: "dates answers by its own machine's clock, unless `proxy_pass_header Date;`",
        CADDY: NO_SETTING,
        APACHE: NO_SETTING,
        CLOUDFLARE: NO_SETTING,
        ALB: NO_SETTING,
    },
    "log": {
        HUB: "one process behind this address, or several with a log that they share (--broker)",
        NGINX: "one `server` in `upstream`, unless they share a log",
        CADDY: "one address in reverse_proxy, unless they share a log",
        APACHE: "one BalancerMember, unless they share a log",
        CLOUDFLARE: "one origin for this name, unless they share a log",
        ALB: "one target in the target group, unless they share a log",
    },
}
