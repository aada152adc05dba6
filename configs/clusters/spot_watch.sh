#!/usr/bin/env bash
# Tells Ray that this spot machine is about to be taken back: spot_watch.sh aws|gcp
#
# A training of several ranks then writes a checkpoint and goes on elsewhere from there. Ray itself
# asks no cloud; under KubeRay and Slurm no watcher is needed, since `ray start --block` drains its
# node when it gets SIGTERM. aws.yaml and gcp.yaml start this on every worker.
#
# The notice: two minutes on AWS
# (https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html), half
# a minute on GCP (https://cloud.google.com/compute/docs/instances/spot), both on a best effort
# basis. Ray Train looks every 5 s; what does not fit the rest is trained again from the last
# checkpoint.
set -euo pipefail

AWS=http://169.254.169.254/latest
GCP=http://metadata.google.internal/computeMetadata/v1

ask() { curl --silent --fail --max-time 2 "$@"; }

taken_back_on_aws() { # 404 until there is a notice; version 2 of the service wants a token
  local token
  token=$(ask -X PUT -H "X-aws-ec2-metadata-token-ttl-seconds: 60" "$AWS/api/token") &&
    ask -H "X-aws-ec2-metadata-token: $token" "$AWS/meta-data/spot/instance-action" >/dev/null
}

taken_back_on_gcp() { # FALSE until there is a notice
  [ "$(ask -H "Metadata-Flavor: Google" "$GCP/instance/preempted")" = TRUE ]
}

case "${1:-}" in
  aws) left_s=100 ;;
  gcp) left_s=25 ;;
  *)
    echo "usage: spot_watch.sh aws|gcp" >&2
    exit 2
    ;;
esac

exec 9>"${TMPDIR:-/tmp}/em-sweeps-spot-watch.lock"
flock --nonblock 9 || exit 0 # one is enough; Ray may have been started again

until "taken_back_on_$1"; do
  sleep 3
done
export RAY_ADDRESS=auto # the Ray of this machine, and never a new one
ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "spot notice of $1" \
  --deadline-remaining-seconds "$left_s"
