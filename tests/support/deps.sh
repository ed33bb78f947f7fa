#!/usr/bin/env bash
# Installs what building, testing and the demo need and this machine lacks, from
# the distribution (Debian or Ubuntu), with sudo when not root. Says what it does
# before it does it; does nothing, quickly, when everything is there.
#
# What cannot be had stops the build only if the build needs it; otherwise the
# tests that will be skipped are named. Services that come with a test tool (an
# SSH server, an NFS server) are not started and not enabled by this.
set -euo pipefail

usage() { echo "usage: deps.sh [build|demo|test|bench|systemd|slurm|libvirt]...   (default: build demo test)"; }
say() { printf 'deps: %s\n' "$*"; }
complain() { printf 'deps: %s\n' "$*" >&2; }

# One line a package: GROUPS | PACKAGE | a command or file that shows it is
# there | what is skipped without it (empty: nothing works without it).
catalogue() {
    cat <<'LIST'
build       | gcc               | gcc                 |
build       | libc6-dev         | /usr/include/stdio.h|
build       | make              | make                |
build       | git               | git                 |
build       | ca-certificates   | /etc/ssl/certs/ca-certificates.crt |
build demo test | fuse3         | fusermount3         |
build demo test | openssh-client | ssh                |
demo test bench | openssh-server | sshd               | the demo and everything over ssh
demo test bench | qemu-system-x86 | qemu-system-x86_64 | the demo and tests that boot a guest
demo test bench | qemu-utils    | qemu-img            | tests that compare disk images
demo test bench | e2fsprogs     | mke2fs              | the demo and tests that boot a guest
demo test bench | xz-utils      | xz                  | the demo and tests that boot a guest
demo test bench | zstd          | zstd                | the demo and tests that boot a guest
demo test bench | kmod          | depmod              | the demo and tests that boot a guest
demo test bench | iproute2      | ip                  | tests on an emulated WAN
demo test bench | util-linux    | nsenter             | tests on an emulated WAN
demo test bench | procps        | ps                  | tests that cut links or end processes
test bench  | nfs-ganesha       | ganesha.nfsd        | tests against NFS-Ganesha
test bench  | nfs-ganesha-vfs   | plugin:libfsalvfs.so | tests against NFS-Ganesha
test bench  | rpcbind           | rpcbind             | tests against NFS-Ganesha
test bench  | libnfs-utils      | nfs-ls              | tests with libnfs as a foreign client
test        | python3           | python3             | tests of system calls, of suspended guests and of terminals
test bench  | sqlite3           | sqlite3             | tests with SQLite
test bench  | fio               | fio                 | tests with fio
test bench  | jq                | jq                  | tests that read JSON from a script
bench       | iperf3            | iperf3              | make bench-link
bench       | sshfs             | sshfs               | the comparison with sshfs
bench       | rclone            | rclone              | the comparison with rclone
bench       | qemu-block-extra  | plugin:block-ssh.so | the comparison with QEMU's own ssh and nfs drivers
bench       | mmdebstrap        | mmdebstrap          | make bench-clone and experiments with guests
systemd     | systemd-container | systemd-nspawn      | make test-systemd
systemd     | mmdebstrap        | mmdebstrap          | make test-systemd
slurm       | slurm-wlm         | slurmctld           | make test-slurm
slurm       | munge             | munged              | make test-slurm
libvirt     | libvirt-daemon-system | libvirtd        | make test-libvirt
libvirt     | libvirt-clients   | virsh               | make test-libvirt
bench       | fakeroot          | fakeroot            | make bench-clone without root
bench       | texlive-latex-base | pdflatex           | LaTeX in make bench-cache and in the experiments
LIST
}

PATH=$PATH:/usr/sbin:/sbin:${CARGO_HOME:-$HOME/.cargo}/bin
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
groups=()
for argument; do
    case $argument in
        build | demo | test | bench | systemd | slurm | libvirt) groups+=("$argument") ;;
        *) usage >&2; exit 2 ;;
    esac
done
((${#groups[@]})) || groups=(build demo test)

present() { # the catalogue's third column
    case $1 in
        plugin:*) [[ -n $(find /usr/lib /usr/lib64 -name "${1#plugin:}" -print -quit 2>/dev/null) ]] ;;
        /*) [[ -e $1 ]] ;;
        *) command -v "$1" >/dev/null ;;
    esac
}

trim() { local text=$1; text=${text#"${text%%[![:space:]]*}"}; printf '%s' "${text%"${text##*[![:space:]]}"}"; }

# Fills `missing` (packages) and `lost` (package -> what is skipped).
declare -A lost
find_missing() {
    local wanted package shown_by without group
    missing=()
    lost=()
    while IFS='|' read -r wanted package shown_by without; do
        package=$(trim "$package")
        for group in "${groups[@]}"; do
            [[ " $(trim "$wanted") " == *" $group "* ]] || continue
            present "$(trim "$shown_by")" && break
            missing+=("$package")
            lost[$package]=$(trim "$without")
            break
        done
    done < <(catalogue)
}

as_root() {
    if ((EUID == 0)); then
        "$@"
    else
        sudo "$@"
    fi
}

can_be_root() {
    ((EUID == 0)) && return
    command -v sudo >/dev/null || return 1
    # Without a terminal nobody can type a password.
    if [[ -t 0 ]]; then return; fi
    sudo -n true 2>/dev/null
}

# env, as sudo drops variables.
apt() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 "$@"; }

lists_refreshed=
refresh_lists() {
    [[ -z $lists_refreshed ]] || return 0
    lists_refreshed=1
    say "apt-get update"
    # One broken third-party source need not stop us.
    apt update >"$log" 2>&1 || complain "apt-get update complained: $(grep -m1 '^[EW]:' "$log" || true)"
}

# Packages installed for a test must not open ports on somebody's machine:
# maintainer scripts ask policy-rc.d before they start a service.
policy=/usr/sbin/policy-rc.d
policy_is_ours=
hold_services() {
    [[ ! -e $policy ]] || return 0
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
    policy_is_ours=1
}
release_services() {
    [[ -z $policy_is_ours ]] || as_root rm -f "$policy"
    policy_is_ours=
}

disable_services() { # PACKAGE...: those that we have just installed
    local package units=()
    [[ -d /run/systemd/system ]] || return 0
    for package; do
        case $package in
            openssh-server) units+=(ssh.service ssh.socket) ;;
            nfs-ganesha) units+=(nfs-ganesha.service) ;;
            rpcbind) units+=(rpcbind.service rpcbind.socket) ;;
            libvirt-daemon-system) units+=(libvirtd.service libvirtd.socket libvirt-guests.service) ;;
            munge) units+=(munge.service) ;;
            slurm-wlm) units+=(slurmctld.service slurmd.service) ;;
        esac
    done
    ((${#units[@]})) || return 0
    say "leaving these services off (the tests start their own): ${units[*]}"
    as_root systemctl disable "${units[@]}" >/dev/null 2>&1 || true
}

# QEMU's packages pin each other's version. Where qemu-utils is already there
# from backports, the release's own qemu-system-x86 cannot be installed beside it
# and the backports suite may not even be configured any more.
qemu_from_backports() {
    local installed codename suite source
    installed=$(dpkg-query -W -f='${Package} ${Version} ${db:Status-Status}\n' 'qemu-*' 2>/dev/null |
        awk '$3 == "installed" && $2 ~ /~bpo/ { print $1; exit }')
    [[ -n $installed ]] || return 1
    # shellcheck disable=SC1091 # the system's
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME-}")
    suite=$codename-backports
    if ! apt-cache policy 2>/dev/null | grep -q "n=$suite"; then
        source=$(archive_line "$codename" "$suite") || return 1
        say "$installed is from backports, so the rest of QEMU must be too: adding $suite in $backports_list"
        printf '%s\n' "$source" | as_root tee "$backports_list" >/dev/null
        lists_refreshed=
        refresh_lists
    fi
    echo "$suite" >"$work/qemu-suite"
}
backports_list=/etc/apt/sources.list.d/gridvfs-backports.list

# A one-line source for SUITE from the mirror (and with the keyring) that this
# machine already uses for its release.
archive_line() { # CODENAME SUITE
    local codename=$1 suite=$2 uri signed
    # The one-line format first, then deb822 stanzas.
    read -r uri signed < <(
        cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null | awk -v c="$codename" '
            $1 == "deb" {
                signed = ""; i = 2
                if ($2 ~ /^\[/) {
                    while (i <= NF) {
                        option = $i; gsub(/[][]/, "", option)
                        if (option ~ /^signed-by=/) signed = substr(option, 11)
                        if ($i ~ /\]$/) break
                        i++
                    }
                    i++
                }
                if ($(i + 1) == c) { print $i, signed; exit }
            }'
        cat /etc/apt/sources.list.d/*.sources 2>/dev/null | awk -v c="$codename" '
            BEGIN { RS = ""; FS = "\n" }
            {
                uri = signed = suites = ""
                for (i = 1; i <= NF; i++) {
                    split($i, part, /:[ \t]*/)
                    value = $i; sub(/^[^:]*:[ \t]*/, "", value)
                    if ($i ~ /^URIs:/) { split(value, u, " "); uri = u[1] }
                    if ($i ~ /^Suites:/) suites = " " value " "
                    if ($i ~ /^Signed-By:/ && value ~ /^\//) signed = value
                }
                if (uri != "" && index(suites, " " c " ")) { print uri, signed; exit }
            }'
    ) || true
    [[ -n ${uri-} ]] || return 1
    echo "deb ${signed:+[signed-by=$signed] }$uri $suite main"
}

install_missing() {
    local plain=() qemu=() package suite=()
    for package in "${missing[@]}"; do
        if [[ $package == qemu-* ]]; then qemu+=("$package"); else plain+=("$package"); fi
    done
    refresh_lists
    hold_services
    # Never by removing something that the machine's owner has.
    if ((${#plain[@]})); then
        say "apt-get install ${plain[*]}"
        if ! apt install --no-install-recommends --no-remove "${plain[@]}" >"$log" 2>&1; then
            complain "not all at once: $(grep -m1 '^E:' "$log" || true) Trying them one by one."
            for package in "${plain[@]}"; do
                apt install --no-install-recommends --no-remove "$package" >"$log" 2>&1 ||
                    complain "cannot install $package: $(grep -m1 '^E:' "$log" || true)"
            done
        fi
    fi
    if ((${#qemu[@]})); then
        if qemu_from_backports; then suite=(-t "$(cat "$work/qemu-suite")"); fi
        say "apt-get install ${suite[*]-} ${qemu[*]}"
        apt install --no-install-recommends --no-remove ${suite[@]+"${suite[@]}"} "${qemu[@]}" >"$log" 2>&1 ||
            complain "cannot install ${qemu[*]}: $(grep -m1 '^E:' "$log" || true)"
    fi
    release_services
    disable_services "${missing[@]}"
}

# --- Rust -------------------------------------------------------------------

rust_wanted=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$here/../../Cargo.toml" | head -n 1)

rust_version() { # empty when there is none that runs
    # rustc, not cargo: a rustup without a toolchain answers with an error.
    rustc --version 2>/dev/null | sed -n 's/^rustc \([0-9.]*\).*/\1/p'
}

rust_is_enough() {
    local have
    have=$(rust_version)
    [[ -n $have ]] && command -v cargo >/dev/null &&
        [[ $(printf '%s\n' "$rust_wanted" "$have" | sort -V | head -n 1) == "$rust_wanted" ]]
}

provide_rust() {
    local have package_there
    if ! rust_is_enough; then
        have=$(rust_version)
        if ! command -v rustup >/dev/null && command -v apt-get >/dev/null && can_be_root; then
            refresh_lists
            package_there=$(apt-cache show rustup 2>/dev/null | head -n 1)
            if [[ -n $package_there ]]; then
                say "apt-get install rustup (Rust $rust_wanted or newer is needed${have:+, $have is here})"
                # Takes the place of the distribution's own cargo and rustc; if
                # those are there, that is for the machine's owner to decide.
                apt install --no-remove rustup >"$log" 2>&1 ||
                    complain "cannot install rustup without removing others: $(grep -m1 '^E:' "$log" || true)"
                hash -r
            fi
        fi
        # A rustup without a toolchain is an unfinished installation; one with a
        # toolchain is somebody's choice.
        if command -v rustup >/dev/null && [[ -z $(rust_version) ]]; then
            say "rustup default stable"
            rustup default stable >"$log" 2>&1 || complain "rustup: $(tail -n 1 "$log" | cut -c1-200)"
        fi
    fi
    if ! rust_is_enough; then
        have=$(rust_version)
        complain "error: Rust $rust_wanted or newer is needed, ${have:-none} is here."
        if command -v rustup >/dev/null; then
            complain "  Do: rustup update stable && rustup default stable"
        elif [[ -n ${package_there-} ]]; then
            complain "  Do: sudo apt-get install rustup && rustup default stable"
            complain "  (it replaces the packages cargo and rustc)"
        else
            complain "  This distribution has no rustup package: install it from https://rustup.rs, then run make again."
        fi
        return 1
    fi
    # The formatter and the linter are components of their own.
    for component in fmt clippy; do
        cargo "$component" --version >/dev/null 2>&1 && continue
        if command -v rustup >/dev/null; then
            say "rustup component add ${component/fmt/rustfmt}"
            rustup component add "${component/fmt/rustfmt}" >"$log" 2>&1 || true
        fi
        cargo "$component" --version >/dev/null 2>&1 ||
            complain "cargo $component is missing: make test and make lint need it"
    done
}

# --- Main -------------------------------------------------------------------

find_missing
if ((${#missing[@]} == 0)) && rust_is_enough && cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1; then
    exit 0
fi

work=$(mktemp -d)
log=$work/log
trap 'release_services; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

if ((${#missing[@]})); then
    say "missing: ${missing[*]}"
    if ! command -v apt-get >/dev/null; then
        complain "this is neither Debian nor Ubuntu: install what matches the names above by your system's own means"
    elif ! can_be_root; then
        complain "cannot install them: not root, and no sudo without a password here"
        complain "  Do: sudo apt-get install --no-install-recommends ${missing[*]}"
    else
        install_missing
    fi
    hash -r
    find_missing
fi

status=0
provide_rust || status=1
for package in ${missing[@]+"${missing[@]}"}; do
    if [[ -n ${lost[$package]} ]]; then
        complain "without $package this is skipped: ${lost[$package]}"
    else
        complain "error: $package is missing and nothing works without it"
        status=1
    fi
done
((status)) || say "done"
exit "$status"
