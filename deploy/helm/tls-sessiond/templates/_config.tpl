{{/* tls-sessiond.toml of both modes. The same files are below deploy/kubernetes. */}}
{{- define "tls-sessiond.config" -}}
{{- if .Values.config }}
{{- .Values.config }}
{{- else if eq .Values.mode "sidecar" }}
{{- include "tls-sessiond.config.sidecar" . }}
{{- else }}
{{- include "tls-sessiond.config.central" . }}
{{- end }}
{{- end }}

{{- define "tls-sessiond.config.sidecar" -}}
{{- if .Values.sharedStore.enabled -}}
# The daemon of one pod, with a store that all pods share. docs/configuration.md has all keys,
# docs/shared-store.md the store.
{{- else -}}
# The daemon of one pod{{ if .Values.proxy.enabled }} with a proxy{{ end }}. docs/configuration.md has all keys.
{{- end }}
[listen]
# No port: on loopback all containers of the pod would be one identity.
api = ["unix:///run/tls-sessiond/api.sock"]

[limits]
# All of this fits into the memory limit of the container, 320 MiB: {{ ternary "27" "13" .Values.sharedStore.enabled }} MiB without work, 39 kB a socket, 157 kB a connection
# by Drive with long messages, session_bytes and request_bytes are {{ ternary "292" "277" .Values.sharedStore.enabled }} MiB. Raise the memory limit first.
sockets = 500
connections = 1_000
connections_per_owner = 1_000
sessions = 20_480
session_bytes = "64MiB"
request_bytes = "32MiB"
request_bytes_per_owner = "32MiB"

[drain]
# The application has ended before the sidecar is stopped, so there is little left to wait for.
timeout = "10s"
{{ include "tls-sessiond.config.store" . }}
# `kubectl exec` and the reload run as the user of this container. No worker may have it.
[[access]]
identity = "uid:50551"
contexts = ["*"]
role = "admin"

{{ if .Values.proxy.enabled -}}
# The proxy alone: the application cannot look sessions up.
[[access]]
identity = "uid:50553"
{{- else -}}
[[access]]
identity = "local"
{{- end }}
contexts = ["*"]
role = "worker"

[[context]]
certificate = "web/tls.crt"
key = "web/tls.key"
# A renewed certificate for the same names keeps the sessions.
scope_by = "names"
{{- end }}

{{- define "tls-sessiond.config.central" -}}
{{- if .Values.sharedStore.enabled -}}
# A daemon of the workers of one namespace, with a store that it shares. docs/configuration.md has all keys,
# docs/shared-store.md the store.
{{- else -}}
# The daemon of the workers of one namespace. docs/configuration.md has all keys.
{{- end }}
[listen]
# Mutual TLS for the workers. The socket is for the probes, `kubectl exec` and the reload.
# A cluster with IPv6 alone needs tls://[::]:50551.
api = ["tls://0.0.0.0:50551", "unix:///run/tls-sessiond/api.sock"]

[listen.tls]
certificate = "/etc/tls-sessiond-api/tls.crt"
key = "/etc/tls-sessiond-api/tls.key"
client_ca = "/etc/tls-sessiond-api/ca.crt"

[limits]
# All of this fits into the memory limit of the container, 1,280 MiB: {{ ternary "27" "13" .Values.sharedStore.enabled }} MiB without work, 39 kB a socket, 157 kB a connection
# by Drive with long messages, session_bytes and request_bytes are {{ ternary "1,085" "1,070" .Values.sharedStore.enabled }} MiB. Raise the memory limit first.
sockets = 2_000
connections = 4_000
connections_per_owner = 2_000
sessions = 200_000
session_bytes = "256MiB"
request_bytes = "128MiB"

[drain]
# Until the Service has no route to this pod any more.
delay = "5s"
timeout = "30s"
{{ include "tls-sessiond.config.store" . }}
# `kubectl exec` and the reload run as the user of this container.
[[access]]
identity = "uid:50551"
contexts = ["*"]
role = "admin"

# The workers of the namespace {{ .Release.Namespace }}. The certificate names their service account.
[[access]]
identity = {{ printf "spiffe://%s/ns/%s/*" .Values.central.trustDomain .Release.Namespace | quote }}
contexts = [{{ .Values.central.context | quote }}]
role = "worker"

[[context]]
name = {{ .Values.central.context | quote }}
certificate = "web/tls.crt"
key = "web/tls.key"
# A renewed certificate for the same names keeps the sessions.
scope_by = "names"
cache_entries_max = 200_000
cache_bytes_max = "256MiB"
{{- end }}

{{- define "tls-sessiond.config.store" -}}
{{- if .Values.sharedStore.enabled }}
[store]
kind = "redis"

[store.redis]
# TLS. Sessions are sealed before they leave the daemon; user and password are not.
urls = [{{ .Values.sharedStore.url | quote }}]
user = {{ .Values.sharedStore.user | quote }}
password_file = "/etc/tls-sessiond-store/password"
sealing_keys = "/etc/tls-sessiond-store/sealing-keys"
ca = "/etc/tls-sessiond-store/ca.crt"
{{ end }}
{{- end }}
