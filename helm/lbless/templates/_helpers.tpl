{{/* The image of a role: include "lbless.image" (list . "operator") */}}
{{- define "lbless.image" -}}
{{- $root := index . 0 -}}
{{- with $root.Values.image -}}
{{ required "Set image.registry to where you have pushed the images: docs/images.md says how to build them." .registry }}/{{ .repository }}/{{ index $ 1 }}:{{ .tag | default $root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "lbless.labels" -}}
app.kubernetes.io/part-of: lbless
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end -}}

{{/* What a container may do: nothing, but with the capabilities that are given. */}}
{{- define "lbless.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
  {{- with .capabilities }}
  add: {{ toJson . }}
  {{- end }}
{{- end -}}

{{- define "lbless.keySecret" -}}
{{ .Values.heartbeat.existingSecret | default "lbless-heartbeat" }}
{{- end -}}
