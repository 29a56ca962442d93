{{/*
The proxy in a pod: TLS on port 8443, for an application that speaks plaintext on loopback. A chart that depends on this one
includes these templates as those of _pod.tpl.
*/}}

{{/* The containers of the proxy, for initContainers, after those of a daemon. */}}
{{- define "tls-sessiond.proxyInitContainers" -}}
- name: tls-sessiond-proxy
  image: {{ include "tls-sessiond.image" (list . "image" .Values.image "deploy/image") }}
  restartPolicy: Always
  args: [proxy, --config, /etc/tls-sessiond-proxy/proxy.toml]
  {{- if .Values.monitoring.enabled }}
  env:
  # Metrics without names, and probes, for every pod that reaches this one. A cluster with IPv6 alone needs tcp://[::]:9552.
  - name: TLS_SESSIOND__LISTEN__PROXY_ADMIN
    value: tcp://0.0.0.0:9552
  - name: TLS_SESSIOND__LISTEN__ADMIN_PUBLIC
    value: "true"
  {{- end }}
  ports:
  - name: https
    containerPort: 8443
  {{- if .Values.monitoring.enabled }}
  - name: proxy-metrics
    containerPort: 9552
  {{- end }}
  # Over loopback: the kubelet cannot reach that, and other pods need no metrics with names.
  startupProbe:
    exec:
      command: [tls-sessiond, health, --proxy]
    periodSeconds: 1
    timeoutSeconds: 2
    failureThreshold: 60
  # The proxy serves without its daemon. Whether the application works is for the probe of the application.
  readinessProbe:
    exec:
      command: [tls-sessiond, health, --proxy]
    periodSeconds: 10
    timeoutSeconds: 2
    failureThreshold: 2
  # A proxy that drains is not serving: 60 s are longer than any drain.
  livenessProbe:
    exec:
      command: [tls-sessiond, health, --proxy]
    periodSeconds: 10
    timeoutSeconds: 2
    failureThreshold: 6
  securityContext:
    {{- include "tls-sessiond.containerSecurity" . | nindent 4 }}
    {{- include "tls-sessiond.proxyUser" . | nindent 4 }}
  resources:
    {{- toYaml .Values.proxy.resources | nindent 4 }}
  volumeMounts:
  - name: tls-sessiond-proxy-config
    mountPath: /etc/tls-sessiond-proxy
    readOnly: true
  {{- if eq .Values.mode "sidecar" }}
  {{- include "tls-sessiond.volumeMounts" . | nindent 2 }}
  {{- else }}
  - name: tls-sessiond-proxy-api
    mountPath: /etc/tls-sessiond-proxy-api
    readOnly: true
  {{- end }}
# Reloads the proxy when its configuration or a certificate has changed.
- name: tls-sessiond-proxy-reload
  image: {{ include "tls-sessiond.image" (list . "reloadImage" .Values.reloadImage "deploy/kubernetes/reload") }}
  restartPolicy: Always
  args:
  - --proxy
  - /etc/tls-sessiond-proxy
  {{- if eq .Values.mode "central" }}
  - /etc/tls-sessiond-proxy-api
  {{- end }}
  securityContext:
    {{- include "tls-sessiond.containerSecurity" . | nindent 4 }}
    {{- include "tls-sessiond.proxyUser" . | nindent 4 }}
  resources:
    requests:
      cpu: 5m
      memory: 8Mi
    limits:
      memory: 64Mi
  volumeMounts:
  - name: tls-sessiond-proxy-config
    mountPath: /etc/tls-sessiond-proxy
    readOnly: true
  {{- if eq .Values.mode "central" }}
  - name: tls-sessiond-proxy-api
    mountPath: /etc/tls-sessiond-proxy-api
    readOnly: true
  {{- end }}
{{- end }}

{{/* Neither the user of the daemon nor that of the application: on the Unix socket a user is an identity, and only the same user
may send a signal. */}}
{{- define "tls-sessiond.proxyUser" -}}
runAsUser: 50553
runAsGroup: 50553
runAsNonRoot: true
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* Labels for the pods: the PodMonitor selects the first, and the NetworkPolicy of a central daemon lets the second in. */}}
{{- define "tls-sessiond.proxyPodLabels" -}}
tls-sessiond/proxy: "true"
tls-sessiond/worker: "true"
{{- end }}

{{- define "tls-sessiond.proxyVolumes" -}}
# One volume, so that the configuration and the files that it names change at once.
- name: tls-sessiond-proxy-config
  projected:
    # Readable by the group of the pod, fsGroup.
    defaultMode: 0440
    sources:
    - configMap:
        name: {{ include "tls-sessiond.name" . }}-proxy
    - secret:
        name: {{ .Values.certificateSecret }}
        items:
        - key: tls.crt
          path: web/tls.crt
        - key: tls.key
          path: web/tls.key
{{- if eq .Values.mode "central" }}
# The certificate with which the proxy connects to the daemon. A reload takes a renewed one for the next connection.
- name: tls-sessiond-proxy-api
  secret:
    secretName: {{ .Values.proxy.certificateSecret | default (printf "%s-worker" (include "tls-sessiond.name" .)) }}
    defaultMode: 0440
{{- end }}
{{- end }}

{{- define "tls-sessiond.proxyConfig" -}}
# The proxy of one pod. docs/configuration.md has all keys.
[drain]
# The application has ended before the proxy is stopped, so there is little left to wait for.
timeout = "10s"

[[proxy]]
# A cluster with IPv6 alone needs tls://[::]:8443.
listen = "tls://0.0.0.0:8443"
backend = "tcp://127.0.0.1:{{ .Values.proxy.backendPort }}"
certificate = "web/tls.crt"
key = "web/tls.key"
alpn = ["http/1.1"]
# All of them fit into the memory limit of the container. Raise that first.
connections = 1_000
{{- if eq .Values.mode "sidecar" }}
# The daemon of the pod.
sessions = "unix:///run/tls-sessiond/api.sock"
{{- else }}
# The central daemon, under the name of the certificate.
sessions = "tls://{{ include "tls-sessiond.name" . }}:50551"
sessions_ca = "/etc/tls-sessiond-proxy-api/ca.crt"
sessions_certificate = "/etc/tls-sessiond-proxy-api/tls.crt"
sessions_key = "/etc/tls-sessiond-proxy-api/tls.key"
context = {{ .Values.central.context | quote }}
{{- end }}
{{- end }}
