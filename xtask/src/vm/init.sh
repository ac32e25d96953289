#!/bin/busybox sh
# The guest's first process: mounts, loads modules, runs every test program
# and powers off. What the image promises and does not keep is a failure of the
# guest, said in a line of its own.
export PATH=/bin
/bin/busybox --install -s /bin
must() {
    "$@" || echo "@BROKEN@$* failed"
}
must mount -t proc proc /proc
must mount -t sysfs sysfs /sys
must mount -t devtmpfs devtmpfs /dev
must mount -t bpf bpffs /sys/fs/bpf
must mount -t tracefs tracefs /sys/kernel/tracing
must mount -t cgroup2 cgroup2 /sys/fs/cgroup
must mount -t tmpfs tmpfs /run
must mount -t tmpfs tmpfs /tmp
mkdir -p /run/netns
chmod 1777 /tmp
must ip link set lo up
while read -r module; do
    must insmod "/modules/$module"
done </modules/list
ulimit -n 65536
# Emulated processors are slow: a twentieth of the load has the same mix.
export EP_GUEST=1 EP_SCALE=0.05 EDGEPROBE_BIN=/bin/edgeprobe RUST_BACKTRACE=0
export CI=@COMPLETE@
cd /tmp || exit
run() {
    program=$1
    shift
    echo "@BEGIN@$program"
    "/tests/$program" --test-threads=1 --show-output "$@" 2>&1
}
@RUNS@
echo "@DONE@"
poweroff -f
