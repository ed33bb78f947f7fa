#!/usr/bin/env bash
# The paper's Figures 3 to 5: a seismic job, a LaTeX document and a kernel build inside a guest whose
# disk is a file on the mount: on local disk, over a LAN without the disk cache, over a WAN without
# and with it. The guest is a Debian with 512 MB of memory and a 2 GB disk, as the paper's Red Hat
# had, under QEMU's own CPU emulation, which is some twenty times slower than the machine: so the jobs
# are small. It is resumed from memory that is local; its disk is what was left when it was suspended.
# shellcheck disable=SC2154 # set by lib.sh and parts.sh
set -euo pipefail
experiment=guest
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source-path=SCRIPTDIR source=../parts.sh
. "$here/parts.sh"
# shellcheck source-path=SCRIPTDIR source=../document.sh
. "$here/document.sh"

PACKAGES=texlive-latex-base,bc,flex,bison,linux-source
# Of the document in the guest; 14 are 190 pages.
CHAPTERS=2

parts() { # FULL
    local name needs=(root qemu-system-x86_64 qemu-img mmdebstrap mke2fs debugfs pdflatex memory:3072 disk:3072)
    for name in local lan-g wan-g wan-gc; do
        part "$name" "three jobs inside a guest: $name" 60 3 "${needs[@]}"
        [[ -z $1 ]] || part "$name-large" "three larger jobs inside a guest: $name" 300 3 "${needs[@]}"
    done
}
sizes() { # PART: sets what is done in the guest
    series_end="" seismic_mib=16 aperture=8 typeset=3 objects=8 modules=3
    [[ $1 != *-large ]] || series_end=", large" seismic_mib=32 aperture=24 typeset=8 objects=50 modules=12
}

# --- The guest, made once ----------------------------------------------------------------

make_guest() { # FOLDER
    local over=$1/over
    # Of other versions; each has a gigabyte.
    find "$store" -maxdepth 1 -name 'jobs-*' ! -path "$1" -exec rm -rf {} +
    "$here/guest/debian.sh" "$store/guest" --disk-mib 2048 --include "$PACKAGES" --setup "$here/guest/kernel-sources" >&2
    # What the document is made with leaves its words there.
    work=$(mktemp -d)
    make_document "$over/root/latex" "$CHAPTERS"
    rm -rf "$work"
    mkdir -p "$over/root/seismic" "$over/usr/local/bin"
    install -m 755 "$programs/gridvfs-seismic" "$over/usr/local/bin/"
    tar -c --owner=0 --group=0 -f "$1/jobs.tar" -C "$over" .
    "$here/guest/suspend.sh" "$store/guest" "$1/golden" --name jobs --memory 512 --settle 10 --add "$1/jobs.tar" >&2
    rm -rf "$over" "$1/jobs.tar"
}

# --- Driving it ----------------------------------------------------------------------------

# Runs a line in the guest's shell, once; its words go to the log.
in_guest() { "$programs/gridvfs-ask" --once --timeout 1200 "$vm/shell.sock" "$1" >"$work/words.guest"; }
told_by_guest() { in_guest "$1" && cat "$work/words.guest"; }
# What the guest has read of its disk is forgotten in it; what it has written is on the disk.
guest_forget() { in_guest "sync; echo 3 >/proc/sys/vm/drop_caches" || die "the guest does not answer"; }

# A clone of the suspended guest, but with the disk itself instead of a redo log over it.
resume_guest() { # DISK
    vm=$work/near/vm
    "$gridvfs" clone "$golden" "$vm" --json >"$work/words.clone"
    sed -i "s|^-drive 'file=.*/disk-redo.qcow2,format=qcow2,|-drive 'file=$1,format=raw,|" "$vm/qemu.args"
    grep -q -F -e "-drive 'file=$1,format=raw," "$vm/qemu.args" || die "the clone's disk is not found in qemu.args"
    "$vm/start" </dev/null >"$work/words.qemu" 2>&1 &
    qemu=$!
    "$programs/gridvfs-ask" --timeout 300 "$vm/shell.sock" >/dev/null || die "the guest is not resumed: $(tail -n 1 "$work/words.qemu")"
}

timed_in_guest() { # JOB X COMMAND
    timed in_guest "$3"
    sample "$series" "$2" "$1 time" s "$(seconds "$took")"
}

seismic_in_guest() {
    local phase number=0 total=0
    guest_forget
    for phase in generate sort stack migrate; do
        timed_in_guest seismic "phase $((++number))" \
            "gridvfs-seismic $phase /root/seismic --mib $seismic_mib --aperture $aperture --fsync"
        total=$((total + took))
    done
    sample "$series" total "seismic time" s "$(seconds "$total")"
}
latex_in_guest() {
    local number total=0
    local typeset_once='cd /root/latex && echo again >>chapter1.tex && pdflatex -interaction=batchmode main.tex >/dev/null'
    guest_forget
    timed_in_guest LaTeX first "$typeset_once"
    for ((number = 2; number <= typeset; number++)); do
        timed in_guest "$typeset_once"
        total=$((total + took))
    done
    sample "$series" "following, mean" "LaTeX time" s "$(calc "$total / 1e6 / ($typeset - 1)")"
}
kernel_in_guest() {
    local run phase
    for run in first second; do
        in_guest "cd /usr/src/kernel && make -s clean" || die "make clean failed"
        guest_forget
        for phase in dep image modules install; do
            timed_in_guest "kernel build" "$run: $phase" \
                "cd /usr/src/kernel && make -s OBJECTS=$objects MODULES=$modules $phase"
        done
    done
}

run_jobs() {
    local result sums
    mount_configured
    # What the guest is resumed from is in memory for all.
    cat "$golden"/{memory,state,vmlinuz,initrd.img} >/dev/null
    resume_guest "$top/disk.raw"
    note "$series" "guest: Debian, 512 MB, QEMU TCG, disk.raw of 2 GB with cache=writeback; not rebooted between runs; its page cache dropped before each job and before the second kernel build, not before the following LaTeX runs; disk cache empty at first, the server's files in its memory"
    note "$series" "guest: seismic with $seismic_mib MiB of traces, each phase fsynced; a LaTeX document of $CHAPTERS chapters (14 are 190 pages), $typeset times; $objects objects and $modules modules of a Linux's lib/ by gcc, with kbuild's own commands"
    seismic_in_guest
    latex_in_guest
    kernel_in_guest
    result=(/root/seismic/image.out /root/latex/main.pdf /usr/src/kernel/installed/image)
    timed in_guest sync
    sample "$series" "the guest's sync" "submission time" s "$(seconds "$took")"
    sums=$(told_by_guest "echo 3 >/proc/sys/vm/drop_caches; cat ${result[*]} | sha256sum; ls /root/seismic")
    kill "$qemu"
    wait "$qemu" 2>/dev/null || true
    submit
    if [[ -n $options ]]; then
        [[ $series != WAN/GC* ]] || sample "$series" write-back "submission time" s "$submitted"
        sample "$series" all "calls to the server" calls "$calls"
        sample "$series" all "sent to the server" MiB "$(calc "$sent / 1048576")"
    fi
    check_disk "$final/disk.raw" "$sums" "${result[@]}"
}
# The server's file is the guest's disk, with the results of all jobs.
check_disk() { # FILE SUMS RESULT...
    local file=$1 sums=$2 status=0 result found
    shift 2
    # Replays the journal: the guest was ended while its disk was mounted.
    e2fsck -fy "$file" >"$work/words.fsck" 2>&1 || status=$?
    ((status < 2)) || die "the guest's disk is damaged: $(tail -n 2 "$work/words.fsck")"
    for result; do
        debugfs -R "dump $result $work/near/result" "$file" >"$work/words.fsck" 2>&1
        cat "$work/near/result"
    done >"$work/near/results"
    found=$(sha256sum <"$work/near/results")
    [[ $sums == "$found"$'\n'image.out ]] || die "the disk has other files than the guest had: $sums against $found"
    debugfs -R "dump /root/seismic/image.out $work/near/result" "$file" >"$work/words.fsck" 2>&1
    compared "$work/near/result" "$image/image.out" "the guest's seismic job"
}

make_image() { # FOLDER
    local phase
    for phase in generate sort stack migrate; do
        "$programs/gridvfs-seismic" "$phase" "$1" --mib "$seismic_mib" --aperture "$aperture"
    done
}

run_part() {
    sizes "$1"
    kept "jobs-$(stamp "$here"/{document.sh,guest/{debian.sh,suspend.sh,kernel-sources,lib.sh}} "$root/bench/src/bin/gridvfs-seismic.rs")" make_guest
    golden=$place/golden
    kept "seismic-$seismic_mib-$aperture-$(stamp "$root/bench/src/bin/gridvfs-seismic.rs")" make_image
    image=$place
    configured "${1%-large}"
    series+=$series_end
    cp --sparse=always "$golden/disk.raw" "$work/far/"
    in_group run_jobs
}

main "$@"
