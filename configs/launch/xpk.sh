#!/usr/bin/env bash
# configs/launch/xpk.sh create | storage | run | logs | list | stop | delete
#
# A Cloud TPU pod slice by XPK, which makes the GKE cluster and submits the job as a JobSet; GKE tells the hosts who they
# are. Needs `pip install xpk`, kubectl and docker. See docs/guides/cloud-tpu-pod.md.
set -euo pipefail
: "${PROJECT:?}" "${ZONE:?}" "${BUCKET:?}" "${IMAGE:?}"   # IMAGE: built from configs/launch/Dockerfile and pushed
CLUSTER=${CLUSTER:-qwen3}
WORKLOAD=${WORKLOAD:-qwen3-train}
TYPE=${TYPE:-v5p-512}
SLICES=${SLICES:-1}
where=(--project="$PROJECT" --zone="$ZONE" --cluster="$CLUSTER")

case "${1:-}" in
create)
    xpk cluster create "${where[@]}" --tpu-type="$TYPE" --num-slices="$SLICES" --on-demand --enable-gcsfuse-csi-driver
    ;;
storage)
    xpk storage attach qwen3-bucket "${where[@]}" --type=gcsfuse --bucket="$BUCKET" --mount-point=/bucket \
        --readonly=false --size=1 --auto-mount=true
    ;;
run) # the same name resumes the same run
    xpk workload create "${where[@]}" --workload="$WORKLOAD" --tpu-type="$TYPE" --num-slices="$SLICES" \
        --docker-image="$IMAGE" --max-restarts=10 \
        --command='qwen3-jax train configs/train/pocket.yaml run_dir=/bucket/runs/qwen3 data.rows=256 data.streams=64 --mesh data=-1'
    ;;
logs)
    kubectl logs --selector="jobset.sigs.k8s.io/jobset-name=$WORKLOAD,batch.kubernetes.io/job-completion-index=0" \
        --all-containers --follow
    ;;
list)
    xpk workload list "${where[@]}"
    ;;
stop)
    xpk workload delete "${where[@]}" --workload="$WORKLOAD"
    ;;
delete)
    xpk cluster delete "${where[@]}"
    ;;
*)
    sed -n '2,6p' "$0" >&2
    exit 2
    ;;
esac
