{{/* Names, labels and the parts that several objects share. */}}

{{- define "pneumonia.name" -}}
{{- .Values.nameOverride | default .Release.Name -}}
{{- end -}}

{{/* files/contract.json: names, ports and paths, generated from the library's contract. */}}
{{- define "pneumonia.contract" -}}
{{- .Files.Get "files/contract.json" -}}
{{- end -}}

{{- define "pneumonia.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{ include "pneumonia.fixedLabels" . }}
{{- end -}}

{{/* Those that stay the same from version to version: KServe copies an InferenceService's labels to its pods, and a
label that changes restarts them all. */}}
{{- define "pneumonia.fixedLabels" -}}
app.kubernetes.io/name: pneumonia
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* KServe puts this on every pod of the service, canaries too; generated names change at each promotion. */}}
{{- define "pneumonia.selector" -}}
serving.kserve.io/inferenceservice: {{ include "pneumonia.name" . }}
{{- end -}}

{{- define "pneumonia.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "pneumonia.name" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{- define "pneumonia.image" -}}
{{- $image := .Values.image -}}
{{- $repository := $image.repository -}}
{{- with $image.registry -}}
{{- $first := splitList "/" $repository | first -}}
{{- if and (contains "/" $repository) (or (contains "." $first) (contains ":" $first) (eq $first "localhost")) -}}
{{- $repository = trimPrefix (printf "%s/" $first) $repository -}}
{{- end -}}
{{- $repository = printf "%s/%s" (trimSuffix "/" .) $repository -}}
{{- end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository ($image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "pneumonia.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: {{ int .Values.runtime.user }}
runAsGroup: {{ int .Values.runtime.user }}
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* The container, the same for a baked release (in the InferenceService) and a mounted one (in the ServingRuntime). */}}
{{- define "pneumonia.container" -}}
{{- $contract := include "pneumonia.contract" . | fromJson -}}
{{- $baked := eq .Values.model.source "image" -}}
name: kserve-container
image: {{ include "pneumonia.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
command: [{{ $contract.SERVER_COMMAND }}]
args:
  - {{ ternary $contract.BAKED_RELEASE $contract.MOUNTED_RELEASE $baked }}
  - --http-port={{ $contract.HTTP_PORT }}
  - --grpc-port={{ $contract.GRPC_PORT }}
  - --metrics-port={{ $contract.METRICS_PORT }}
  - --exit-timeout-secs={{ sub (int .Values.probes.terminationGraceSeconds) 10 }}
  {{- range .Values.runtime.args }}
  - {{ . | quote }}
  {{- end }}
env:
  # ONNX Runtime's own builds report each process to their maker otherwise.
  - {name: ORT_DISABLE_TELEMETRY, value: "1"}
  - {name: {{ $contract.ALLOW_SYNTHETIC_ENV }}, value: {{ ternary "1" "0" .Values.model.allowSynthetic | quote }}}
  # The root file system is read-only.
  - {name: HOME, value: /tmp}
  - {name: TMPDIR, value: /tmp}
  - {name: PYTHONDONTWRITEBYTECODE, value: "1"}
  {{- with .Values.runtime.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
# What a server says last before it stops stands in the pod's status, where a rollout and `kubectl describe` read it.
terminationMessagePolicy: FallbackToLogsOnError
# The first port is the one that KServe routes HTTP to.
ports:
  - {name: http1, containerPort: {{ $contract.HTTP_PORT }}, protocol: TCP}
  - {name: grpc, containerPort: {{ $contract.GRPC_PORT }}, protocol: TCP}
  - {name: metrics, containerPort: {{ $contract.METRICS_PORT }}, protocol: TCP}
startupProbe:
  httpGet: {path: /v2/models/{{ $contract.ENSEMBLE }}/ready, port: {{ $contract.HTTP_PORT }}}
  periodSeconds: 5
  timeoutSeconds: 4
  failureThreshold: {{ div (add (int .Values.probes.startupSeconds) 4) 5 }}
readinessProbe:
  httpGet: {path: /v2/models/{{ $contract.ENSEMBLE }}/ready, port: {{ $contract.HTTP_PORT }}}
  periodSeconds: {{ int .Values.probes.periodSeconds }}
  timeoutSeconds: 4
  failureThreshold: 3
livenessProbe:
  httpGet: {path: /v2/health/live, port: {{ $contract.HTTP_PORT }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
lifecycle:
  preStop:
    # Until every node has heard that this pod is going.
    sleep: {seconds: 5}
resources:
  requests:
    {{- toYaml .Values.resources.requests | nindent 4 }}
  limits:
    {{- toYaml .Values.resources.limits | nindent 4 }}
    {{- if eq .Values.runtime.variant "gpu" }}
    {{ .Values.runtime.gpu.resource }}: {{ .Values.runtime.gpu.count | quote }}
    {{- end }}
securityContext:
  {{- include "pneumonia.containerSecurity" . | nindent 2 }}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
  - {name: shared-memory, mountPath: /dev/shm}
{{- end -}}

{{- define "pneumonia.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 1Gi}
- name: shared-memory
  emptyDir: {medium: Memory, sizeLimit: {{ .Values.runtime.sharedMemory }}}
{{- end -}}

{{/* The pod around the container: of the stable predictor and of a canary. */}}
{{- define "pneumonia.pod" -}}
serviceAccountName: {{ include "pneumonia.serviceAccount" . }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ int .Values.probes.terminationGraceSeconds }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ int .Values.runtime.user }}
  runAsGroup: {{ int .Values.runtime.user }}
  fsGroup: {{ int .Values.runtime.user }}
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- $selector := deepCopy .Values.scheduling.nodeSelector }}
{{- if .Values.runtime.gpu.product }}
{{- $_ := set $selector "nvidia.com/gpu.product" .Values.runtime.gpu.product }}
{{- end }}
{{- with $selector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $tolerations := .Values.scheduling.tolerations }}
{{- if eq .Values.runtime.variant "gpu" }}
{{- $tolerations = append $tolerations (dict "key" .Values.runtime.gpu.resource "operator" "Exists" "effect" "NoSchedule") }}
{{- end }}
{{- with $tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.scheduling.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.scheduling.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- if .Values.scheduling.spread.enabled }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: {{ .Values.scheduling.spread.topologyKey }}
    whenUnsatisfiable: {{ .Values.scheduling.spread.whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- include "pneumonia.selector" . | nindent 8 }}
{{- end }}
{{- end -}}

{{- define "pneumonia.model" -}}
modelFormat: {name: triton, version: "2"}
protocolVersion: v2
runtime: {{ include "pneumonia.name" . }}
{{- end -}}

{{/* The InferenceService as it stands in the cluster, as JSON; {} before the first install and without a cluster. */}}
{{- define "pneumonia.live" -}}
{{- lookup "serving.kserve.io/v1beta1" "InferenceService" .Release.Namespace (include "pneumonia.name" .) | default dict | toJson -}}
{{- end -}}

{{/*
What is served, as JSON: {"name", "uri", "canary"}. With managedBy=deploy the deploy step owns these three after the
first install, so they are read back and an upgrade never reverts a promotion.
*/}}
{{- define "pneumonia.served" -}}
{{- $model := .Values.model -}}
{{- $served := dict "name" "" "uri" $model.uri "canary" list -}}
{{- if eq $model.managedBy "values" -}}
{{- $_ := set $served "name" $model.predictorName -}}
{{- else if ne $model.source "image" -}}
{{- $spec := dig "spec" dict (include "pneumonia.live" . | fromJson) -}}
{{- $uri := dig "predictor" "model" "storageUri" "" $spec -}}
{{- if $uri -}}
{{- $served = dict "name" (dig "predictor" "name" "" $spec) "uri" $uri "canary" (dig "canary" list $spec) -}}
{{- end -}}
{{- end -}}
{{- $served | toJson -}}
{{- end -}}

{{/*
The Deployment that answers for the Service of the InferenceService's name: the stable predictor's, or a canary's that
has all of the traffic and is about to take its place. In the cluster the deploy step moves it in the same order.
*/}}
{{- define "pneumonia.workload" -}}
{{- $served := include "pneumonia.served" . | fromJson -}}
{{- $predictor := $served.name -}}
{{- $canary := .Values.model.canary -}}
{{- if and $canary.name (eq (int $canary.trafficPercent) 100) -}}
{{- $predictor = $canary.name -}}
{{- end -}}
{{- range $served.canary -}}
{{- if eq (int .trafficPercent) 100 -}}
{{- $predictor = .predictor.name -}}
{{- end -}}
{{- end -}}
{{- include "pneumonia.name" . }}{{ with $predictor }}-{{ . }}{{ end }}-predictor
{{- end -}}

{{- define "pneumonia.operator" -}}
{{- $auto := and (eq .Values.metrics.operator "auto") (.Capabilities.APIVersions.Has "monitoring.coreos.com/v1") -}}
{{- if or $auto (eq .Values.metrics.operator "always") }}true{{ end -}}
{{- end -}}

{{/* Label matchers of this service's metrics, as the ServiceMonitor's scrapes carry them. */}}
{{- define "pneumonia.matchers" -}}
namespace="{{ .Release.Namespace }}",service="{{ include "pneumonia.name" . }}-metrics"
{{- end -}}

{{/* Of the objects of the hook that takes a service from the gateway. */}}
{{- define "pneumonia.closeMetadata" }}
  namespace: {{ .Release.Namespace }}
  labels:
    {{- include "pneumonia.labels" . | nindent 4 }}
    app.kubernetes.io/component: close-routes
  annotations:
    helm.sh/hook: post-upgrade
    helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}
