{{/* Values that contradict each other: every sentence names them, and all that apply are shown at once. */}}
{{- define "pneumonia.validate" -}}
{{- $v := .Values -}}
{{- $model := $v.model -}}
{{- $name := include "pneumonia.name" . -}}
{{- $release := "releases/<64 hex digits, as pneumoctl publish prints them>" -}}
{{- $bad := list -}}
{{- if not $v.image.repository -}}
{{- $bad = append $bad "image.repository is required: the image that `make images push REGISTRY=<registry>` builds and pushes, such as registry.example.com/pneumonia-triton" -}}
{{- end -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]{0,28}[a-z0-9])?$" $name) -}}
{{- $bad = append $bad (printf "the release's name %q cannot name an InferenceService: at most 30 lower-case letters, digits and hyphens, a letter first; set nameOverride" $name) -}}
{{- end -}}
{{- $long := add (len $name) (len .Release.Namespace) -}}
{{- if and (ne $model.source "image") (gt (int $long) 37) -}}
{{- $bad = append $bad (printf "the name %q (%d) and the namespace %q (%d) have %d characters together, at most 37 are possible: KServe gives each canary a host <name>-<release>-predictor-<namespace>, one label of 63; set nameOverride or take a shorter namespace" $name (len $name) .Release.Namespace (len .Release.Namespace) (int $long)) -}}
{{- end -}}
{{- if and (eq $v.scaling.type "keda") $model.canary.name -}}
{{- $bad = append $bad (printf "scaling.type=keda with model.canary.name=%s: KServe makes a ScaledObject without triggers for the canary, which KEDA refuses, and then nothing of the service is updated; set scaling.type to none or hpa while a canary stands" $model.canary.name) -}}
{{- end -}}
{{- if and (eq $model.source "image") $model.uri -}}
{{- $bad = append $bad (printf "model.source=image serves the release inside the image, but model.uri=%s names another; set model.source to where it is, or leave model.uri empty" $model.uri) -}}
{{- end -}}
{{- if ne $model.source "image" -}}
{{- if not $model.uri -}}
{{- $bad = append $bad (printf "model.source=%s needs model.uri: the first release to serve" $model.source) -}}
{{- end -}}
{{- range $path, $uri := dict "model.uri" $model.uri "model.canary.uri" $model.canary.uri -}}
{{- if $uri -}}
{{- $scheme := ternary "oci(\\+[a-z]+)?" $model.source (eq $model.source "oci") -}}
{{- if not (regexMatch (printf "^%s://" $scheme) $uri) -}}
{{- $bad = append $bad (printf "model.source=%s, but %s=%s; it has to start with %s://" $model.source $path $uri $model.source) -}}
{{- else if eq $model.source "oci" -}}
{{- if not (regexMatch "@sha256:[0-9a-f]{64}$" $uri) -}}
{{- $bad = append $bad (printf "%s=%s names no digest; a release is immutable, so end it with @sha256:<digest>" $path $uri) -}}
{{- end -}}
{{- else if not (regexMatch "/releases/[0-9a-f]{64}/?$" $uri) -}}
{{- $bad = append $bad (printf "%s=%s names no single release; it has to end with /%s, so that a pod which starts later cannot pick up a model that nobody promoted" $path $uri $release) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $model.canary.name -}}
{{- if eq $model.source "image" -}}
{{- $bad = append $bad (printf "model.source=image and model.canary.name=%s: KServe runs canaries of models that have a URI only; publish the release and set model.source to s3, pvc or oci" $model.canary.name) -}}
{{- end -}}
{{- if ne $model.managedBy "values" -}}
{{- $bad = append $bad (printf "model.canary.name=%s with model.managedBy=%s: the deploy step owns canaries; set model.managedBy=values or leave model.canary.name empty" $model.canary.name $model.managedBy) -}}
{{- end -}}
{{- if not $model.canary.uri -}}
{{- $bad = append $bad (printf "model.canary.name=%s needs model.canary.uri" $model.canary.name) -}}
{{- end -}}
{{- if eq $model.canary.name $model.predictorName -}}
{{- $bad = append $bad (printf "model.canary.name and model.predictorName are both %s; KServe tells the two apart by their names" $model.canary.name) -}}
{{- end -}}
{{- if and $model.canary.uri (eq $model.canary.uri $model.uri) -}}
{{- $bad = append $bad (printf "model.canary.uri and model.uri are the same release, %s" $model.uri) -}}
{{- end -}}
{{- if and $model.canary.trafficPercent (not $v.gateway.exposed) -}}
{{- $bad = append $bad (printf "model.canary.trafficPercent=%d with gateway.exposed=false: shares of traffic exist only where KServe routes through its gateway" (int $model.canary.trafficPercent)) -}}
{{- end -}}
{{- else if or $model.canary.uri $model.canary.trafficPercent -}}
{{- $bad = append $bad (printf "model.canary.uri=%q and model.canary.trafficPercent=%d without model.canary.name; a canary needs a name" $model.canary.uri (int $model.canary.trafficPercent)) -}}
{{- end -}}
{{- if and $model.predictorName (ne $model.managedBy "values") -}}
{{- $bad = append $bad (printf "model.predictorName=%s with model.managedBy=%s: the deploy step names the predictor; set model.managedBy=values or leave model.predictorName empty" $model.predictorName $model.managedBy) -}}
{{- end -}}
{{- if and $model.synthetic (not $model.allowSynthetic) -}}
{{- $bad = append $bad "model.synthetic=true and model.allowSynthetic=false: this model has seen drawn images only; train one on X-rays, or set model.allowSynthetic=true to try the platform" -}}
{{- end -}}
{{- $live := include "pneumonia.live" . | fromJson -}}
{{- if and (eq $model.source "image") (dig "spec" "canary" list $live) -}}
{{- $bad = append $bad (printf "model.source=image, but InferenceService %s has a canary, which needs a model with a URI; end it with `pneumoctl model promote` or `pneumoctl model rollback` first" $name) -}}
{{- end -}}
{{- if and $v.s3.createSecret $v.s3.existingSecret -}}
{{- $bad = append $bad (printf "s3.createSecret=true and s3.existingSecret=%s: choose one" $v.s3.existingSecret) -}}
{{- end -}}
{{- if and $v.s3.createSecret (not (and $v.s3.accessKeyId $v.s3.secretAccessKey)) -}}
{{- $bad = append $bad "s3.createSecret=true needs s3.accessKeyId and s3.secretAccessKey" -}}
{{- end -}}
{{- if and (not $v.s3.createSecret) (or $v.s3.accessKeyId $v.s3.secretAccessKey) -}}
{{- $bad = append $bad "s3.accessKeyId or s3.secretAccessKey is set, but s3.createSecret=false uses neither; set s3.createSecret=true, or better s3.existingSecret" -}}
{{- end -}}
{{- if and (not $v.s3.createSecret) (or $v.s3.endpoint $v.s3.caBundleConfigMap) -}}
{{- $bad = append $bad (printf "s3.endpoint=%q and s3.caBundleConfigMap=%q with s3.createSecret=false change nothing: KServe reads them from annotations of the Secret; annotate s3.existingSecret" $v.s3.endpoint $v.s3.caBundleConfigMap) -}}
{{- end -}}
{{- if and (or $v.s3.createSecret $v.s3.existingSecret) (ne $model.source "s3") -}}
{{- $bad = append $bad (printf "s3.createSecret=%t and s3.existingSecret=%q give credentials, but model.source=%s reads no bucket" $v.s3.createSecret $v.s3.existingSecret $model.source) -}}
{{- end -}}
{{- if and (or $v.s3.createSecret $v.s3.existingSecret) (not $v.serviceAccount.create) -}}
{{- $bad = append $bad "s3 credentials with serviceAccount.create=false: KServe finds them through the ServiceAccount's list of secrets; set serviceAccount.create=true, or list the Secret in your own ServiceAccount and leave s3.existingSecret empty" -}}
{{- end -}}
{{- if and (not $v.serviceAccount.create) $v.serviceAccount.annotations -}}
{{- $bad = append $bad "serviceAccount.annotations with serviceAccount.create=false annotate nothing" -}}
{{- end -}}
{{- $gpu := $v.runtime.gpu -}}
{{- if ne $v.runtime.variant "gpu" -}}
{{- if $gpu.tensorrt -}}
{{- $bad = append $bad (printf "runtime.gpu.tensorrt=true with runtime.variant=%s: an engine needs a GPU; set runtime.variant=gpu" $v.runtime.variant) -}}
{{- else if $gpu.product -}}
{{- $bad = append $bad (printf "runtime.gpu.product=%s with runtime.variant=%s; set runtime.variant=gpu" $gpu.product $v.runtime.variant) -}}
{{- end -}}
{{- else if and $gpu.tensorrt (not $gpu.product) -}}
{{- $bad = append $bad "runtime.gpu.tensorrt=true needs runtime.gpu.product: an engine runs only on the GPU that it was built on" -}}
{{- end -}}
{{- range $kind := list "requests" "limits" -}}
{{- if hasKey (index $v.resources $kind) $gpu.resource -}}
{{- $bad = append $bad (printf "resources.%s.%s is set beside runtime.variant and runtime.gpu.count, which ask for GPUs; remove it" $kind $gpu.resource) -}}
{{- end -}}
{{- end -}}
{{- $scaling := $v.scaling -}}
{{- $min := int $scaling.minReplicas -}}
{{- $max := int $scaling.maxReplicas -}}
{{- if gt $min $max -}}
{{- $bad = append $bad (printf "scaling.minReplicas=%d is above scaling.maxReplicas=%d" $min $max) -}}
{{- else if and (eq $scaling.type "none") (ne $min $max) -}}
{{- $bad = append $bad (printf "scaling.type=none with scaling.minReplicas=%d and scaling.maxReplicas=%d: nothing scales; make them equal or set scaling.type" $min $max) -}}
{{- else if and (ne $scaling.type "none") (eq $min $max) -}}
{{- $bad = append $bad (printf "scaling.type=%s with scaling.minReplicas and scaling.maxReplicas both %d: there is nothing to scale; set scaling.type=none or raise scaling.maxReplicas" $scaling.type $max) -}}
{{- end -}}
{{- if and (eq $scaling.type "hpa") (not (index $v.resources.requests $scaling.hpa.metric)) -}}
{{- $bad = append $bad (printf "scaling.hpa.metric=%s is measured against resources.requests.%s, which is not set" $scaling.hpa.metric $scaling.hpa.metric) -}}
{{- end -}}
{{- if eq $scaling.type "keda" -}}
{{- if not $scaling.keda.prometheusUrl -}}
{{- $bad = append $bad "scaling.type=keda needs scaling.keda.prometheusUrl" -}}
{{- end -}}
{{- if eq $v.metrics.operator "never" -}}
{{- $bad = append $bad "scaling.type=keda asks Prometheus for this service's queue, but with metrics.operator=never nothing reads its metrics" -}}
{{- end -}}
{{- else if $scaling.keda.prometheusUrl -}}
{{- $bad = append $bad (printf "scaling.keda.prometheusUrl=%s with scaling.type=%s is never asked" $scaling.keda.prometheusUrl $scaling.type) -}}
{{- end -}}
{{- if and $v.podDisruptionBudget.enabled (ge $min 2) (ge (int $v.podDisruptionBudget.maxUnavailable) $min) -}}
{{- $bad = append $bad (printf "podDisruptionBudget.maxUnavailable=%d lets all of scaling.minReplicas=%d pods go at once" (int $v.podDisruptionBudget.maxUnavailable) $min) -}}
{{- end -}}
{{- if and $v.deployStep.enabled (not $v.deployStep.serviceAccounts) -}}
{{- $bad = append $bad "deployStep.enabled=true needs deployStep.serviceAccounts: who gets the rights" -}}
{{- end -}}
{{- if and $v.deployStep.enabled (eq $model.managedBy "values") -}}
{{- $bad = append $bad "deployStep.enabled=true with model.managedBy=values: the deploy step would change what the values own; with GitOps it writes a values patch and needs no rights" -}}
{{- end -}}
{{- if and $v.deployStep.enabled (eq $model.source "image") -}}
{{- $bad = append $bad "deployStep.enabled=true with model.source=image: a release inside the image cannot be replaced by a deploy; publish it and set model.source to s3, pvc or oci" -}}
{{- end -}}
{{- range $v.runtime.args -}}
{{- if regexMatch "^--(model-repository|model-store|http-port|grpc-port|metrics-port|model-control-mode|exit-timeout-secs)(=|$)" . -}}
{{- $bad = append $bad (printf "runtime.args holds %s, which the chart sets itself" .) -}}
{{- end -}}
{{- end -}}
{{- range $v.runtime.env -}}
{{- if has .name (list "ORT_DISABLE_TELEMETRY" "PNEUMONIA_ALLOW_SYNTHETIC" "HOME" "TMPDIR" "PYTHONDONTWRITEBYTECODE") -}}
{{- $bad = append $bad (printf "runtime.env holds %s, which the chart sets itself" .name) -}}
{{- end -}}
{{- end -}}
{{- if and (eq $model.source "s3") $v.networkPolicy.enabled (not (and $v.networkPolicy.storageCidrs $v.networkPolicy.storagePorts)) -}}
{{- $bad = append $bad "model.source=s3 with networkPolicy.enabled=true needs networkPolicy.storageCidrs and networkPolicy.storagePorts, or the model could not be fetched" -}}
{{- end -}}
{{- if $bad -}}
{{- fail (printf "\n\nvalues:\n  - %s\n" (join "\n  - " $bad)) -}}
{{- end -}}
{{- end -}}
