# shellcheck shell=bash
# What must be in the environment of every node when Ray starts there. Sourced by the launch files
# beside it; the KubeRay manifests say the same. It holds no key.

# Who may talk to this Ray must show its token. Ray does not encrypt: keep it in a private network.
export RAY_AUTH_MODE=token
# A worker that holds no GPU must not see one, or it would use one that another holds.
export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1

# NODE_DISK: a folder on a disk of this node, for models and adapters. Where it is not set, they go
# below ~/.cache, which on many clusters is a shared disk: slow for all nodes at once.
if [ -n "${NODE_DISK:-}" ]; then
  export EMSWEEP_CACHE="$NODE_DISK/em-sweeps" HF_HOME="$NODE_DISK/huggingface"
  mkdir -p "$EMSWEEP_CACHE" "$HF_HOME"
fi
