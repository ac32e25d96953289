#!/bin/busybox sh
# The guest's first process: mounts, loads modules, does what the guest was
# booted for and powers off. What the image promises and does not keep is a
# failure of the guest, said in a line of its own.
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
cd /tmp || exit
@TASK@
echo "@DONE@"
poweroff -f
