{{/* The name of all objects: that of the release, with that of the chart if it is not in it. 49 letters leave room for endings
of ours in names of 63. */}}
{{- define "tls-sessiond.name" -}}
{{- $both := printf "%s-%s" .Release.Name .Chart.Name }}
{{- ternary .Release.Name $both (contains .Chart.Name .Release.Name) | trunc 49 | trimSuffix "-" }}
{{- end }}

{{/* Labels of the selectors. */}}
{{- define "tls-sessiond.selector" -}}
app.kubernetes.io/name: tls-sessiond
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Labels of all objects. */}}
{{- define "tls-sessiond.labels" -}}
{{ include "tls-sessiond.selector" . }}
{{ include "tls-sessiond.chartLabels" . }}
{{- end }}

{{/* Labels that only Helm has. */}}
{{- define "tls-sessiond.chartLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* An image of the values: (list . "image" .Values.image "deploy/image"). */}}
{{- define "tls-sessiond.image" -}}
{{- $root := index . 0 }}
{{- $name := index . 1 }}
{{- $image := index . 2 }}
{{- $source := index . 3 }}
{{- $missing := printf "%s.repository is not set: nothing is published, so build %s, push it, and name it" $name $source }}
{{- printf "%s:%s" (required $missing $image.repository) ($image.tag | default $root.Chart.AppVersion) }}
{{- end }}

{{/* Settings of a container that hold in both modes. */}}
{{- define "tls-sessiond.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* A user of its own: on the Unix socket a user is an identity, and the configuration makes this one the admin. */}}
{{- define "tls-sessiond.user" -}}
runAsUser: 50551
runAsGroup: 50551
runAsNonRoot: true
seccompProfile:
  type: RuntimeDefault
{{- end }}
