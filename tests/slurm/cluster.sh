#!/usr/bin/env bash
# A throw-away Slurm cluster on one machine (no systemd, no containers).
#   cluster.sh start  DIR [NODES]   start munged, slurmctld and NODES slurmd
#   cluster.sh env    DIR           print "export SLURM_CONF=... PATH=..."
#   cluster.sh status DIR           sinfo + the daemons' pids
#   cluster.sh node   DIR NODE      start a slurmd that died
#   cluster.sh stop   DIR           cancel every job, stop the daemons by pid
# Needs root and the Debian packages slurm-wlm, munge.  Nothing outside DIR is written;
# a second cluster may run in another DIR with another BASE_PORT.
set -euo pipefail
PATH=$PATH:/usr/sbin

BASE_PORT=${BASE_PORT:-16800}
CPUS=${CPUS:-4}            # advertised per node (config_overrides: need not exist)
MEM_MB=${MEM_MB:-4000}
GPUS=${GPUS:-2}            # fake GPUs per node
GPU_TYPE=${GPU_TYPE:-fake}

die() { echo "cluster: $*" >&2; exit 1; }

cmd=${1:-}; dir=${2:-}; nodes=${3:-2}
[ -n "$cmd" ] && [ -n "$dir" ] || die "usage: $0 start|env|status|node|stop DIR [NODES|NODE]"
mkdir -p "$dir"; dir=$(cd "$dir" && pwd)
export SLURM_CONF=$dir/slurm.conf
# sockets have a path limit of 108 bytes
[ "${#dir}" -lt 80 ] || die "DIR is too long for a unix socket: $dir"

spawn() {  # spawn NAME command...  : background, own session, pid in DIR/NAME.pid
    local name=$1; shift
    setsid "$@" >"$dir/$name.out" 2>&1 </dev/null &
    echo $! >"$dir/$name.pid"
}
lives() { grep -Eq '^State:[[:space:]]+[^ZX[:space:]]' "/proc/$1/status" 2>/dev/null; }  # a zombie does not
alive() { [ -s "$dir/$1.pid" ] && lives "$(cat "$dir/$1.pid")"; }
wait_for() {  # wait_for SECONDS what command...
    local limit=$1 what=$2; shift 2
    local end=$((SECONDS + limit))
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || die "$what is not up after ${limit}s (logs in $dir)"
        sleep 0.1
    done
}
stop_all() {  # stop_all NAME... : TERM to each, wait up to 10 s in all, KILL
    local n pids=()
    for n in "$@"; do
        if alive "$n"; then pids+=("$(cat "$dir/$n.pid")"); fi
        rm -f "$dir/$n.pid"
    done
    [ ${#pids[@]} -gt 0 ] || return 0
    kill -TERM "${pids[@]}" 2>/dev/null || true
    for _ in $(seq 100); do
        local left=0 pid
        for pid in "${pids[@]}"; do if lives "$pid"; then left=1; fi; done
        [ $left = 1 ] || return 0
        sleep 0.1
    done
    kill -KILL "${pids[@]}" 2>/dev/null || true
}

write_conf() {
    local i
    cat >"$dir/slurm.conf" <<CONF
ClusterName=ci
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$((BASE_PORT + 1))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire is also how long a requeued job must wait (default 120 s)
AuthInfo=socket=$dir/munge.socket,cred_expire=5
CredType=cred/munge
MpiDefault=none
StateSaveLocation=$dir/state
# two clusters on one machine number their jobs, and the ports made of them, apart
FirstJobId=$((BASE_PORT * 10))
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/slurmctld.selfpid
SlurmdPidFile=$dir/slurmd-%n.selfpid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd-%n.log
MailProg=/bin/true
ReturnToService=2
# no cgroups: works in any container or VM
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
# finished jobs must stay visible to squeue: >= 3 x init-seconds-before-status-checks
MinJobAge=3600
# speed
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,bf_max_job_test=100,sched_min_interval=100000
EpilogMsgTime=0
KillWait=20
CompleteWait=0
InactiveLimit=0
OverTimeLimit=0
UnkillableStepTimeout=15
SlurmdTimeout=60
# requeue and preemption
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# resources
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
GresTypes=gpu
SlurmdParameters=config_overrides
MaxArraySize=1001
# refuse at submission what could never run, instead of leaving it pending
EnforcePartLimits=ALL
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
CONF
    for i in $(seq "$nodes"); do
        echo "NodeName=n$i NodeHostname=localhost NodeAddr=127.0.0.1 Port=$((BASE_PORT + 10 + i)) CPUs=$CPUS RealMemory=$MEM_MB Gres=gpu:$GPU_TYPE:$GPUS State=UNKNOWN"
    done >>"$dir/slurm.conf"
    # Partitions over the same nodes: cpu and gpu preempt spot and scavenge.
    cat >>"$dir/slurm.conf" <<CONF
PartitionName=cpu  Nodes=n[1-$nodes] Default=YES MaxTime=30 DefaultTime=5 State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=gpu  Nodes=n[1-$nodes] MaxTime=30 DefaultTime=5 State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=spot Nodes=n[1-$nodes] MaxTime=30 DefaultTime=5 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=scavenge Nodes=n[1-$nodes] MaxTime=30 DefaultTime=5 State=UP PriorityTier=1 PreemptMode=CANCEL GraceTime=0
CONF
    # Fake GPUs.  File= must name character devices that exist (slurmd checks);
    # any will do without cgroups, and with one Slurm hands out indices and sets
    # CUDA_VISIBLE_DEVICES per job and step as on a real cluster.
    local devices=(null zero full random urandom tty ptmx)
    [ "$GPUS" -le "${#devices[@]}" ] || die "at most ${#devices[@]} fake GPUs a node"
    for i in $(seq "$nodes"); do
        for g in $(seq 0 $((GPUS - 1))); do
            echo "NodeName=n$i Name=gpu Type=$GPU_TYPE File=/dev/${devices[$g]}"
        done
    done >"$dir/gres.conf"
}

# snakemake-executor-plugin-slurm-jobstep drops every SLURM_* variable but a few
# before it calls srun, SLURM_CONF among them, so the clients must find the
# configuration another way: /etc/slurm/slurm.conf, or these wrappers on PATH
# (sbatch --export=ALL carries PATH into the job).
write_wrappers() {
    local c
    mkdir -p "$dir/bin"
    for c in sacct sacctmgr salloc sbatch scancel scontrol sinfo squeue srun sshare; do
        [ -x "/usr/bin/$c" ] || continue
        printf '#!/bin/sh\nSLURM_CONF=%s exec /usr/bin/%s "$@"\n' "$SLURM_CONF" "$c" >"$dir/bin/$c"
        chmod +x "$dir/bin/$c"
    done
}
print_env() { echo "export SLURM_CONF=$SLURM_CONF PATH=$dir/bin:\$PATH"; }

case $cmd in
start)
    alive slurmctld && die "already running in $dir"
    trap '"$0" stop "$dir" || true' EXIT   # a failed start leaves nothing behind
    mkdir -p "$dir/state"; for i in $(seq "$nodes"); do mkdir -p "$dir/spool-n$i"; done
    write_conf
    write_wrappers
    if [ ! -s "$dir/munge.key" ]; then
        (umask 077; head -c 128 /dev/urandom >"$dir/munge.key")
    fi
    spawn munged munged --foreground --force --key-file="$dir/munge.key" \
        --socket="$dir/munge.socket" --pid-file="$dir/munged.selfpid" \
        --seed-file="$dir/munge.seed" --log-file="$dir/munged.log"
    wait_for 10 munged munge -S "$dir/munge.socket" -n
    spawn slurmctld slurmctld -D -i
    wait_for 20 slurmctld scontrol ping
    for i in $(seq "$nodes"); do spawn "slurmd-n$i" slurmd -D -N "n$i"; done
    all_idle() { [ "$(sinfo -h -N -p cpu -t idle -o %N | sort -u | wc -l)" = "$nodes" ]; }
    wait_for 30 "every slurmd" all_idle
    trap - EXIT
    print_env
    ;;
env) print_env ;;
node)
    alive "slurmd-$nodes" && die "slurmd of $nodes is running"
    spawn "slurmd-$nodes" slurmd -D -N "$nodes"
    scontrol update nodename="$nodes" state=resume
    # not "down", nor anything with an asterisk (it does not answer yet)
    node_up() { sinfo -h -n "$nodes" -p cpu -o %T | grep -Eqx 'idle|mixed|allocated|completing|planned'; }
    wait_for 60 "$nodes" node_up
    ;;
status)
    sinfo -N -o '%N %P %t %c %m %G' || true
    for f in "$dir"/*.pid; do
        [ -e "$f" ] || continue
        n=$(basename "$f" .pid); if alive "$n"; then echo "$n up $(cat "$f")"; else echo "$n down"; fi
    done
    ;;
stop)
    if alive slurmctld; then
        scancel --full -u root 2>/dev/null || true
        for _ in $(seq 100); do
            [ -z "$(squeue -h -o %i 2>/dev/null)" ] && break; sleep 0.1
        done
    fi
    names=(slurmctld)
    for f in "$dir"/slurmd-*.pid; do [ -e "$f" ] && names+=("$(basename "$f" .pid)"); done
    stop_all "${names[@]}"
    stop_all munged
    # what a job left behind (after a node went down, say): processes with both
    # this cluster's directory and a node's name in their environment
    for p in /proc/[0-9]*; do
        vars=$({ tr '\0' '\n' <"$p/environ"; } 2>/dev/null) || continue
        if grep -q '^SLURMD_NODENAME=' <<<"$vars" &&
            grep -Eq "^(SLURM_CONF=$dir/slurm.conf$|PATH=$dir/bin:)" <<<"$vars"; then
            kill -KILL "${p#/proc/}" 2>/dev/null || true
        fi
    done
    ;;
*) die "unknown command $cmd" ;;
esac
