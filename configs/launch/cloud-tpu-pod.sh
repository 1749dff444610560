#!/usr/bin/env bash
# configs/launch/cloud-tpu-pod.sh create | install | checkpoint | run | generate | logs | stop | delete
#
# A Cloud TPU pod slice by gcloud: the same command runs on every host, which find one another through the metadata of
# their machines. See docs/guides/cloud-tpu-pod.md.
set -euo pipefail
: "${PROJECT:?}" "${ZONE:?}" "${BUCKET:?}"          # us-east5-a; a bucket with a hierarchical namespace
NAME=${NAME:-qwen3}
TYPE=${TYPE:-v5p-512}                               # v5p counts cores: 256 chips, 8x8x4
RUNTIME=${RUNTIME:-v2-alpha-tpuv5}                  # v5e: v2-alpha-tpuv5-lite, v6e: v2-alpha-tpuv6e
SOURCE=${SOURCE:?a URL that git can clone}
# What is trained: a configuration, and what the slice wants of it. 64 hosts make 64 streams of the data.
TRAIN=${TRAIN:-configs/train/pocket.yaml data.rows=256 data.streams=64 --mesh data=-1}
where=(--project="$PROJECT" --zone="$ZONE")

everywhere() {
    gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all --command="$1"
}

case "${1:-}" in
create)
    gcloud compute tpus queued-resources create "$NAME" "${where[@]}" \
        --node-id="$NAME" --accelerator-type="$TYPE" --runtime-version="$RUNTIME"
    gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" --format='value(state.state)'
    ;;
install)
    everywhere "set -e
        git clone --depth 1 $SOURCE qwen3-jax
        cd qwen3-jax
        python3 -m venv .venv
        .venv/bin/pip install --quiet --constraint constraints.txt '.[tpu,hub]'
        export GCSFUSE_REPO=gcsfuse-\$(lsb_release -c -s)
        echo \"deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt \$GCSFUSE_REPO main\" | sudo tee /etc/apt/sources.list.d/gcsfuse.list
        curl -s https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/cloud.google.asc > /dev/null
        sudo apt-get update -qq && sudo apt-get install -y -qq gcsfuse
        mkdir -p ~/bucket && gcsfuse $BUCKET ~/bucket"
    ;;
checkpoint) # from a laptop or one host: once, into the bucket that all hosts have mounted
    hf download "${MODEL:-Qwen/Qwen3-235B-A22B}" --local-dir checkpoint
    gcloud storage rsync --recursive checkpoint "gs://$BUCKET/checkpoint"
    ;;
run) # also what resumes a run that was stopped; it goes on when this terminal is closed
    everywhere "cd qwen3-jax && nohup .venv/bin/qwen3-jax train $TRAIN run_dir=\$HOME/bucket/runs/$NAME > ~/train.log 2>&1 &"
    ;;
generate)
    everywhere "cd qwen3-jax && .venv/bin/qwen3-jax generate --model \$HOME/bucket/checkpoint --mesh expert=32,tensor=8,rules.embed=null,rules.router_embed=null --prompt-file \$HOME/bucket/prompt.txt"
    ;;
logs) # of one host; only process 0 writes metrics
    gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker="${WORKER:-0}" --command='tail -n 100 -f ~/train.log'
    ;;
stop) # the run saves its state and leaves
    everywhere "pkill -TERM --exact qwen3-jax"
    ;;
delete)
    gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force --quiet
    ;;
*)
    sed -n '2,5p' "$0" >&2
    exit 2
    ;;
esac
