# Emulated processors are slow: a twentieth of the load has the same mix.
export EP_GUEST=1 EP_SCALE=0.05 EDGEPROBE_BIN=/bin/edgeprobe RUST_BACKTRACE=0
export CI=@COMPLETE@
run() {
    program=$1
    shift
    echo "@BEGIN@$program"
    "/tests/$program" --test-threads=1 --show-output "$@" 2>&1
}
@RUNS@
