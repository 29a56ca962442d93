{{/*
The daemon in a pod. A chart that depends on this one includes these templates with the scope of this chart:
(index .Subcharts "tls-sessiond"). README.md shows a Deployment.
*/}}

{{/* The containers of a sidecar, for initContainers: native sidecars start before the application, and end after it. */}}
{{- define "tls-sessiond.initContainers" -}}
{{ include "tls-sessiond.daemon" . }}
{{ include "tls-sessiond.reload" . }}
{{- end }}

{{/*
The mount for each container that calls the daemon: unix:///run/tls-sessiond/api.sock. A container that can write to the folder
could replace the socket, and answer in the daemon's place. A connection needs no permission to write to the folder.
*/}}
{{- define "tls-sessiond.volumeMounts" -}}
- name: tls-sessiond-run
  mountPath: /run/tls-sessiond
  readOnly: true
{{- end }}

{{/* Labels for the pods, which the PodMonitor selects. */}}
{{- define "tls-sessiond.podLabels" -}}
tls-sessiond/inject: "true"
{{- end }}

{{- define "tls-sessiond.daemon" -}}
- name: tls-sessiond
  image: {{ include "tls-sessiond.image" (list . "image" .Values.image "deploy/image") }}
  {{- if eq .Values.mode "sidecar" }}
  restartPolicy: Always
  {{- end }}
  args: [--config, /etc/tls-sessiond/tls-sessiond.toml]
  env:
  # For the probes, the reload and `kubectl exec`. Without it they fall back to a port of loopback while there is no socket,
  # and another container of the pod could answer there.
  - name: TLS_SESSIOND_ADDRESS
    value: unix:///run/tls-sessiond/api.sock
  {{- if .Values.monitoring.enabled }}
  # Metrics without names, and probes. There is no status page at such an address. A cluster with IPv6 alone needs
  # tcp://[::]:9551.
  - name: TLS_SESSIOND__LISTEN__ADMIN
    value: tcp://0.0.0.0:9551
  - name: TLS_SESSIOND__LISTEN__ADMIN_PUBLIC
    value: "true"
  {{- end }}
  {{- if or (eq .Values.mode "central") .Values.monitoring.enabled }}
  ports:
  {{- if .Values.monitoring.enabled }}
  - name: {{ ternary "tls-sessiond" "metrics" (eq .Values.mode "sidecar") }}
    containerPort: 9551
  {{- end }}
  {{- if eq .Values.mode "central" }}
  - name: api
    containerPort: 50551
  {{- end }}
  {{- end }}
  # 0.1 s with sessions in memory, 2 s with a shared store.
  startupProbe:
    exec:
      command: [tls-sessiond, health]
    periodSeconds: 1
    timeoutSeconds: 2
    failureThreshold: 60
  readinessProbe:
    exec:
      command: [tls-sessiond, health]
    periodSeconds: 10
    timeoutSeconds: 2
    failureThreshold: 2
  # A daemon that drains is not serving: 60 s are longer than any drain.
  livenessProbe:
    exec:
      command: [tls-sessiond, health]
    periodSeconds: 10
    timeoutSeconds: 2
    failureThreshold: 6
  securityContext:
    {{- include "tls-sessiond.containerSecurity" . | nindent 4 }}
    {{- if eq .Values.mode "sidecar" }}
    {{- include "tls-sessiond.user" . | nindent 4 }}
    {{- end }}
  resources:
    {{- toYaml (index .Values .Values.mode).resources | nindent 4 }}
  volumeMounts:
  - name: tls-sessiond-run
    mountPath: /run/tls-sessiond
  {{- include "tls-sessiond.fileMounts" . | nindent 2 }}
{{- end }}

{{/* Reloads the daemon when its configuration or a certificate has changed. */}}
{{- define "tls-sessiond.reload" -}}
- name: tls-sessiond-reload
  image: {{ include "tls-sessiond.image" (list . "reloadImage" .Values.reloadImage "deploy/kubernetes/reload") }}
  {{- if eq .Values.mode "sidecar" }}
  restartPolicy: Always
  {{- end }}
  args:
  - /etc/tls-sessiond
  {{- if eq .Values.mode "central" }}
  - /etc/tls-sessiond-api
  {{- end }}
  {{- if .Values.sharedStore.enabled }}
  - /etc/tls-sessiond-store
  {{- end }}
  env:
  - name: TLS_SESSIOND_ADDRESS
    value: unix:///run/tls-sessiond/api.sock
  securityContext:
    {{- include "tls-sessiond.containerSecurity" . | nindent 4 }}
    {{- if eq .Values.mode "sidecar" }}
    {{- include "tls-sessiond.user" . | nindent 4 }}
    {{- end }}
  resources:
    requests:
      cpu: 5m
      memory: 8Mi
    limits:
      memory: 64Mi
  volumeMounts:
  {{- include "tls-sessiond.volumeMounts" . | nindent 2 }}
  {{- include "tls-sessiond.fileMounts" . | nindent 2 }}
{{- end }}

{{/* The files of the daemon, which its reload looks at. */}}
{{- define "tls-sessiond.fileMounts" -}}
- name: tls-sessiond-config
  mountPath: /etc/tls-sessiond
  readOnly: true
{{- if eq .Values.mode "central" }}
- name: tls-sessiond-api
  mountPath: /etc/tls-sessiond-api
  readOnly: true
{{- end }}
{{- if .Values.sharedStore.enabled }}
- name: tls-sessiond-store
  mountPath: /etc/tls-sessiond-store
  readOnly: true
{{- end }}
{{- end }}

{{- define "tls-sessiond.volumes" -}}
# The folder of the socket. Nothing in it has a size.
- name: tls-sessiond-run
  emptyDir:
    medium: Memory
    sizeLimit: 1Mi
# One volume, so that the configuration and the files that it names change at once.
- name: tls-sessiond-config
  projected:
    # Readable by the group of the pod, fsGroup.
    defaultMode: 0440
    sources:
    - configMap:
        name: {{ include "tls-sessiond.name" . }}
    - secret:
        name: {{ .Values.certificateSecret }}
        items:
        - key: tls.crt
          path: web/tls.crt
        - key: tls.key
          path: web/tls.key
{{- if .Values.sharedStore.enabled }}
# The sealing keys open every session of the fleet: only the daemon and its reload get them.
- name: tls-sessiond-store
  secret:
    secretName: {{ .Values.sharedStore.secret }}
    defaultMode: 0440
{{- end }}
{{- end }}
