#!/bin/busybox sh
# The guest's first process: mounts, loads modules, runs every test program
# and powers off.
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mount -t bpf bpffs /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mkdir -p /run/netns
chmod 1777 /tmp
ip link set lo up
while read -r module; do
    insmod "/modules/$module" || echo "module $module cannot be loaded"
done </modules/list
ulimit -n 65536
# Emulated processors are slow: a twentieth of the load has the same mix.
export EP_GUEST=1 EP_SCALE=0.05 EDGEPROBE_BIN=/bin/edgeprobe RUST_BACKTRACE=0
cd /tmp || exit
for test in /tests/*; do
    echo "@BEGIN@${test##*/}"
    "$test" --test-threads=1 --show-output @ARGS@ 2>&1
done
echo "@DONE@"
poweroff -f
