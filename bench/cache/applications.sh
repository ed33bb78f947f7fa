# shellcheck shell=bash disable=SC2154 # sourced by cache.sh
# Applications that run a second time: all they read is in the cache. The same folder
# in the mount and on the disk that the cache is on, in turns.

# application ROW CLEAN RUN: folders $work/far/ROW and its copy $disk/ROW are made.
# CLEAN and RUN are shell commands within them.
application() {
    local row=$1 clean=$2 run=$3 round side calls
    app_folder() { if [[ $1 == ours ]]; then echo "$mnt/$row"; else echo "$disk/$row"; fi; }
    app_run() { # ours|reference
        (cd "$(app_folder "$1")" && bash -c "$clean") >"$work/words.app" 2>&1 || die "$row: cleaning failed"
        # What the last run left to be written is not this one's.
        "$gridvfs" writeback "$mnt" >"$work/words.writeback" || die "writeback failed"
        sync
        calls=$(status_of .link.calls)
        # shellcheck disable=SC2016 # expanded by the inner shell
        timed bash -c 'cd "$1" && eval "$2" >"$3" 2>&1' app "$(app_folder "$1")" "$run" "$work/words.app"
        seconds_of[$1]=$(calc "$took / 1e6")
        calls=$(($(status_of .link.calls) - calls))
        # The link waits for nobody: what it carries meanwhile is this run's, or is sent behind it.
        [[ $1 != ours ]] || detail "$row" "calls to the server in a run" "$calls"
    }
    local -A seconds_of=()
    mount_far "cache_dir=$disk/cache,consistency=dedicated,write_policy=write-back,default_permissions"
    for side in ours reference; do
        app_run "$side"
    done
    detail "$row" "first run s (cold)" "${seconds_of[ours]}"
    for ((round = 1; round <= rounds; round++)); do
        in_turns "$round" app_run
        sample "$row" "${seconds_of[ours]}" "${seconds_of[reference]}"
    done
    detail "$row" "hits" "$(status_of .cache.hits)"
    detail "$row" "misses" "$(status_of .cache.misses)"
    unmount
}

row_latex() {
    row latex "a LaTeX document of 190 pages with 30 figures, a chapter changed, again" s "local disk" "<=1.05"
    if ! command -v pdflatex >/dev/null; then
        skip latex "pdflatex is not installed (make deps-bench)"
        return
    fi
    make_document "$work/far/latex"
    cp -a "$work/far/latex" "$disk/latex"
    # shellcheck disable=SC2016 # expanded by the inner shell
    application latex 'rm -f main.aux main.log main.pdf main.toc' \
        'for run in 1 2 3; do echo again >>chapter$run.tex; pdflatex -interaction=batchmode main.tex || exit 1; done; test -s main.pdf'
}

# Lua's sources, from the crate that carries them: cargo fetches and checks it.
LUA_CRATE=lua-src LUA_VERSION=547.0.0
lua_sources() { # prints their folder
    local fetch=$work/fetch found
    find_sources() { find "${CARGO_HOME:-$HOME/.cargo}"/registry/src -path "*/$LUA_CRATE-$LUA_VERSION/lua-5.4.7" -print -quit 2>/dev/null; }
    found=$(find_sources || true)
    if [[ -z $found ]]; then
        mkdir -p "$fetch/src"
        : >"$fetch/src/lib.rs"
        printf '[package]\nname = "fetch"\nversion = "0.0.0"\nedition = "2021"\n[workspace]\n[dependencies]\n%s = "=%s"\n' \
            "$LUA_CRATE" "$LUA_VERSION" >"$fetch/Cargo.toml"
        cargo fetch -q --manifest-path "$fetch/Cargo.toml" >"$work/words.fetch" 2>&1 || true
        found=$(find_sources || true)
    fi
    echo "$found"
}

row_build() {
    local sources
    row build "make -j$(nproc) of Lua 5.4, a clean tree, again" s "local disk" "<=1.05"
    sources=$(lua_sources)
    if [[ -z $sources ]]; then
        skip build "cargo cannot fetch $LUA_CRATE $LUA_VERSION, which has Lua's sources"
        return
    fi
    mkdir -p "$work/far/build"
    cp "$sources"/*.[ch] "$work/far/build"
    cat >"$work/far/build/Makefile" <<'MAKEFILE'
CFLAGS = -O2 -fPIC -MMD -DLUA_USE_POSIX
OBJECTS := $(patsubst %.c,%.o,$(wildcard *.c))
all: liblua.a liblua.so
liblua.a: $(OBJECTS)
	ar rcs $@ $^
liblua.so: $(OBJECTS)
	$(CC) -shared -o $@ $^ -lm
clean:
	rm -f *.o *.d liblua.a liblua.so
-include $(OBJECTS:.o=.d)
MAKEFILE
    # Whole seconds: make takes a file of the future for a mistake.
    find "$work/far/build" -exec touch -d '1 hour ago' {} +
    cp -a "$work/far/build" "$disk/build"
    application build 'make clean' "make -j$(nproc)"
}

row_kernel() {
    row kernel "make -j$(nproc) of a Linux kernel (tinyconfig), again" s "local disk" "<=1.05"
    if [[ -z $kernel ]]; then
        skip kernel "--kernel DIR names a Linux source tree"
        return
    fi
    cp -a "$kernel" "$work/far/kernel"
    (cd "$work/far/kernel" && make -s mrproper tinyconfig) >"$work/words.app" 2>&1 || die "kernel: tinyconfig failed"
    cp -a "$work/far/kernel" "$disk/kernel"
    application kernel 'make -s clean' "make -s -j$(nproc)"
}
