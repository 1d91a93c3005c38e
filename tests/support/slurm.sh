#!/usr/bin/env bash
# A private Slurm of several nodes on one Debian machine, for the tests; as root, without systemd.
#
#   tests/support/slurm.sh install            the packages, where they are missing
#   tests/support/slurm.sh up N [OWNER]       N nodes; torn down by itself when the process OWNER is gone
#   tests/support/slurm.sh down               everything that `up` started, and the directory
#   tests/support/slurm.sh status
#   tests/support/slurm.sh kill WHAT          a power cut of n1, n2, ..., or kill -9 of ctld or dbd
#   tests/support/slurm.sh start WHAT         and back again
#
# GNNSCALE_SLURM  the directory that holds all of it (default: /tmp/gnnscale-slurm); two of them do not meet
# ACCOUNTING=1    with slurmdbd and a MariaDB, so that sacct works and accounts are checked
# MIN_JOB_AGE     seconds after which a finished job is forgotten (default 3600)
#
# Commands find it by SLURM_CONF=$GNNSCALE_SLURM/slurm.conf. Every node is a namespace of its own (host name, processes,
# mounts), so `hostname` says n1 there, its name resolves there alone, and nothing is written outside of the directory.
set -euo pipefail
STATE=${GNNSCALE_SLURM:-/tmp/gnnscale-slurm}
ACCOUNTING=${ACCOUNTING:-0} MIN_JOB_AGE=${MIN_JOB_AGE:-3600}
CPUS=8 MEMORY=16000 GPUS=4 # what each node claims to have
export SLURM_CONF=$STATE/slurm.conf

install() {
    local packages=(slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge slurmdbd slurm-wlm-mysql-plugin
        mariadb-server util-linux procps iproute2) missing=() package
    for package in "${packages[@]}"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] && return
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

alive() { [ -s "$STATE/run/$1.pid" ] && kill -0 "$(cat "$STATE/run/$1.pid")" 2>/dev/null; }

wait_for() { # SECONDS COMMAND...
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || { echo "slurm.sh: waited in vain for: $*" >&2; tail -n 5 "$STATE"/log/*.log >&2; return 1; }
        sleep 0.1
    done
}

free_ports() { # as many as asked for, none in use now
    python3 - "$1" <<'PYTHON'
import socket, sys
held = [socket.socket() for _ in range(int(sys.argv[1]))]
for each in held:
    each.bind(("127.0.0.1", 0))
print(*(each.getsockname()[1] for each in held))
PYTHON
}

# A daemon in the foreground, with its pid in $STATE/run; it is killed together with nothing else.
daemon() { # NAME COMMAND...
    local name=$1
    shift
    setsid "$@" </dev/null >>"$STATE/log/$name.out" 2>&1 &
    echo $! >"$STATE/run/$name.pid"
}

configure() { # N
    local n=$1 ports k accounting=none
    read -ra ports <<<"$(free_ports $((n + 3)))"
    # FirstJobId: ranks meet on a port made of the job's id, so two clusters on this machine have ids of their own
    [ "$ACCOUNTING" = 1 ] && accounting=slurmdbd
    mkdir -p "$STATE"/{run,log,munge,ctld,dev}
    chmod 755 "$STATE" "$STATE/munge" "$STATE/run"
    echo "$n" >"$STATE/nodes"
    dd if=/dev/urandom of="$STATE/munge/key" bs=128 count=1 status=none
    chmod 400 "$STATE/munge/key"
    cp /etc/hosts "$STATE/hosts"
    for k in $(seq "$n"); do
        echo "127.0.1.$k n$k" >>"$STATE/hosts"
        mkdir -p "$STATE/spool.n$k" && mkdir -p -m 1777 "$STATE/tmp.n$k"
    done
    for k in $(seq 0 $((GPUS - 1))); do mknod -m 666 "$STATE/dev/gpu$k" c 1 3 2>/dev/null || touch "$STATE/dev/gpu$k"; done
    echo "AutoDetect=off" >"$STATE/gres.conf"
    echo "Name=gpu File=$STATE/dev/gpu[0-$((GPUS - 1))]" >>"$STATE/gres.conf"
    cat >"$STATE/slurm.conf" <<CONF
ClusterName=virtual
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$STATE/munge/socket,cred_expire=15
SlurmctldPort=${ports[0]}
SlurmctldPidFile=$STATE/run/own.ctld.pid
SlurmdPidFile=$STATE/run/own.%n.pid
SlurmctldLogFile=$STATE/log/ctld.log
SlurmdLogFile=$STATE/log/%n.log
StateSaveLocation=$STATE/ctld
SlurmdSpoolDir=$STATE/spool.%n
TmpFS=$STATE/tmp.%n
PlugStackConfig=$STATE/plugstack.conf
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_min_interval=1,sched_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdTimeout=60
SlurmctldTimeout=10
InactiveLimit=0
KillWait=30
MinJobAge=$MIN_JOB_AGE
FirstJobId=$((ports[0] % 190 * 100 + 1))
Waittime=0
MessageTimeout=10
GresTypes=gpu
AccountingStorageType=accounting_storage/$accounting
CONF
    : >"$STATE/plugstack.conf"
    if [ "$ACCOUNTING" = 1 ]; then
        cat >>"$STATE/slurm.conf" <<CONF
AccountingStorageHost=127.0.0.1
AccountingStoragePort=${ports[1]}
AccountingStoragePass=$STATE/munge/socket
AccountingStorageEnforce=associations,limits,qos
CONF
        cat >"$STATE/slurmdbd.conf" <<CONF
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=${ports[1]}
AuthType=auth/munge
AuthInfo=socket=$STATE/munge/socket
SlurmUser=root
LogFile=$STATE/log/dbd.log
PidFile=$STATE/run/own.dbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=${ports[2]}
StorageUser=root
StorageLoc=slurm
CONF
        chmod 600 "$STATE/slurmdbd.conf"
        echo "${ports[2]}" >"$STATE/db.port"
    fi
    {
        echo "NodeName=DEFAULT CPUs=$CPUS RealMemory=$MEMORY State=UNKNOWN Gres=gpu:$GPUS"
        for k in $(seq "$n"); do echo "NodeName=n$k NodeHostname=n$k NodeAddr=127.0.1.$k Port=${ports[$((k + 2))]}"; done
        echo "PartitionName=batch Nodes=ALL Default=YES MaxTime=02:00:00 PriorityTier=1 State=UP"
        echo "PartitionName=debug Nodes=n1 MaxTime=00:30:00 PriorityTier=1 State=UP"
        echo "PartitionName=urgent Nodes=ALL MaxTime=00:30:00 PriorityTier=9 State=UP"
    } >>"$STATE/slurm.conf"
}

start_database() {
    local port
    port=$(cat "$STATE/db.port")
    mkdir -p "$STATE/db"
    [ -d "$STATE/db/mysql" ] || mariadb-install-db --no-defaults --user=root --datadir="$STATE/db" \
        --auth-root-authentication-method=normal --skip-test-db >"$STATE/log/db-install.out" 2>&1
    daemon db mariadbd --no-defaults --user=root --datadir="$STATE/db" --socket="$STATE/db/socket" \
        --bind-address=127.0.0.1 --port="$port" --pid-file="$STATE/db/own.pid" --innodb-buffer-pool-size=64M \
        --innodb-log-file-size=16M --skip-name-resolve --skip-log-bin
    wait_for 120 mariadb-admin --no-defaults --socket="$STATE/db/socket" ping
}

start_one() { # ctld | dbd | nK
    alive "$1" && return
    case $1 in
    ctld)
        daemon ctld slurmctld -D -i
        wait_for 60 ping_ctld
        ;;
    dbd)
        SLURM_CONF=$STATE/slurm.conf daemon dbd slurmdbd -D
        wait_for 90 sacctmgr -n list cluster
        ;;
    n*)
        daemon "$1" unshare --uts --mount --pid --fork --kill-child=KILL --mount-proc sh -c "
            hostname $1 && mount --bind '$STATE/hosts' /etc/hosts && exec slurmd -D -N $1"
        ;;
    *) echo "slurm.sh: start what? ctld, dbd, n1, ..." >&2 && return 2 ;;
    esac
}

ping_ctld() { scontrol ping | grep -q 'is UP'; }

# A node's `unshare` is killed together with the namespace's first process, and the kernel kills all others in it.
kill_one() {
    alive "$1" || { rm -f "$STATE/run/$1.pid"; return 0; }
    local pid
    pid=$(cat "$STATE/run/$1.pid")
    kill -9 "$pid" 2>/dev/null || true
    while kill -0 "$pid" 2>/dev/null && ! grep -q '^State:.Z' "/proc/$pid/status" 2>/dev/null; do sleep 0.02; done
    rm -f "$STATE/run/$1.pid"
}

idle() { [ "$(sinfo -h -p batch -t idle,alloc,mix -o %D | awk '{s += $1} END {print s + 0}')" -ge "$1" ]; }

up() { # N [OWNER]
    local n=$1 k
    [ -e "$STATE/slurm.conf" ] && { echo "slurm.sh: $STATE is there already; \`down\` removes it" >&2; return 1; }
    trap '[ $? = 0 ] || down' EXIT # half of it is of no use
    configure "$n"
    if [ -n "${2:-}" ]; then
        setsid bash -c "while kill -0 $2 2>/dev/null; do sleep 1; done; exec env GNNSCALE_SLURM='$STATE' '$(realpath "$0")' down" \
            </dev/null >/dev/null 2>&1 &
    fi
    daemon munge munged --foreground --force --key-file="$STATE/munge/key" --socket="$STATE/munge/socket" \
        --pid-file="$STATE/munge/own.pid" --log-file="$STATE/log/munge.log" --seed-file="$STATE/munge/seed"
    wait_for 60 sh -c "munge --socket='$STATE/munge/socket' -n | unmunge --socket='$STATE/munge/socket'"
    if [ "$ACCOUNTING" = 1 ]; then
        start_database
        start_one dbd
        sacctmgr -i -Q add cluster virtual >/dev/null
        sacctmgr -i -Q add account science Description=tests Organization=tests >/dev/null
        sacctmgr -i -Q add user "$(id -un)" Account=science >/dev/null
    fi
    start_one ctld
    for k in $(seq "$n"); do start_one "n$k"; done
    wait_for 120 idle "$n"
    echo "SLURM_CONF=$SLURM_CONF"
}

down() {
    [ -d "$STATE/run" ] || return 0
    local name file
    for file in "$STATE"/run/n*.pid "$STATE"/run/{ctld,dbd,db,munge}.pid; do
        name=$(basename "$file" .pid)
        [ -e "$file" ] && kill_one "$name"
    done
    rm -rf "$STATE"
}

case ${1:-} in
install) install ;;
up) up "${2:?how many nodes?}" "${3:-}" ;;
down) down ;;
status) sinfo -N -l && squeue ;;
kill) kill_one "${2:?what?}" ;;
start) start_one "${2:?what?}" ;;
*) sed -n '2,20s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
