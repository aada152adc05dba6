"""The fields of KubeRay's resources that the launch files use, as JSON schemas.

Names, types and choices as in its reference, KubeRay 1.6
(https://docs.ray.io/en/master/cluster/kubernetes/references/api.html). A field that is not here is
refused: look it up there, and add it. What stands inside a pod is Kubernetes' own.
"""

from typing import Any

TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
FLAG: dict[str, Any] = {"type": "boolean"}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
POD: dict[str, Any] = {"type": "object"}
RAY_START: dict[str, Any] = {"type": "object", "additionalProperties": TEXT}  # numbers in quotes


def fields(*, required: tuple[str, ...] = (), **known: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": known,
        "required": list(required),
        "additionalProperties": False,
    }


CLUSTER_SPEC = fields(
    required=("headGroupSpec",),
    rayVersion=TEXT,
    authOptions=fields(mode={"enum": ["disabled", "token"]}, secretName=TEXT),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=fields(
        version={"enum": ["v1", "v2"]},
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        idleTimeoutSeconds=COUNT,
    ),
    headGroupSpec=fields(
        required=("template",),
        serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
        rayStartParams=RAY_START,
        template=POD,
    ),
    workerGroupSpecs={
        "type": "array",
        "items": fields(
            required=("groupName", "template"),
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            idleTimeoutSeconds=COUNT,
            rayStartParams=RAY_START,
            template=POD,
        ),
    },
)


def _resource(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return fields(
        required=("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=fields(required=("name",), name=TEXT, namespace=TEXT),
        spec=spec,
    )


RAYCLUSTER = _resource("RayCluster", CLUSTER_SPEC)
RAYJOB = _resource(
    "RayJob",
    fields(
        required=("entrypoint", "rayClusterSpec"),
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        entrypoint=TEXT,
        jobId=TEXT,
        metadata={"type": "object", "additionalProperties": TEXT},
        runtimeEnvYAML=TEXT,
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=COUNT,
        activeDeadlineSeconds={"type": "integer", "minimum": 1},
        backoffLimit=COUNT,
        suspend=FLAG,
        rayClusterSpec=CLUSTER_SPEC,
    ),
)
