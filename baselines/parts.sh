# shellcheck shell=bash
# Parts of a long script, each bounded in seconds and run once. Sourced by results/gpu.sh and
# baselines/heads/train.sh; it starts nothing by itself.
#
# - OUTPUT/summary.tsv holds a line per part: name, exit code, seconds, state. A part is done when the
#   state of its last line is `done` or `finding`; AGAIN=1 repeats it.
# - `finding`: exit code 1 without a Python traceback, which is a check that does not hold. A module
#   that is missing is a failure.
# - OUTPUT/NAME.log holds all output of a part, tracebacks included.
# - BUDGET: seconds of the whole call; no part is started with less than LEAST seconds left.
# - SLOWER multiplies the seconds of every part.
# - PYTHON: the interpreter. A checkout need not be installed; wheels in WHEELS are made importable.
# - PACK=FOLDER keeps OUTPUT there as NAME.tgz.part-aa, ... of at most 15 MiB; FROM=FOLDER unpacks these.
#   What does not fit PACK_MIB in all is left out: checkpoints, the data set, then weights. An OUTPUT
#   that does not fit without them is a failure, and an earlier archive stays.
# - Ctrl-C, SIGTERM and SIGHUP end the part at hand, and then the script, with 130, 143 or 129.

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
budget=${BUDGET:-540}
least=${LEAST:-10}
pack_mib=${PACK_MIB:-60}
begun=$SECONDS
untried=0
failures=0
is_packed=1

# begin_parts OUTPUT NAME: unpack what an earlier call packed, and make the package importable.
begin_parts() {
    archive=$2
    mkdir -p "$1"
    output=$(cd "$1" && pwd)
    summary=$output/summary.tsv
    if [ -n "${FROM:-}" ] && [ ! -s "$summary" ]; then
        cat "$FROM/$archive".tgz.part-* | tar -xzf - -C "$output"
    fi
    export FSPAD_BENCH_CACHE=${FSPAD_BENCH_CACHE:-$HOME/.cache/fspad-bench}
    export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}
    export PYTHONUNBUFFERED=1
    trap 'interrupted INT 2' INT
    trap 'interrupted TERM 15' TERM
    trap 'interrupted HUP 1' HUP
    earlier=$(cat "$summary" 2>/dev/null || true)
    make_importable "$FSPAD_BENCH_CACHE/site"
}

# make_importable SITE: wheels without their dependencies, and the checkout with its entry points.
make_importable() {
    local site=$1 wheels=()
    mkdir -p "$site"
    export PYTHONPATH="$checkout:$site${PYTHONPATH:+:$PYTHONPATH}"
    shopt -s nullglob
    wheels=("${WHEELS:-$checkout/.whl}"/*.whl)
    shopt -u nullglob
    if ((${#wheels[@]})); then
        "$python" -m pip install --quiet --no-index --no-deps --upgrade --target "$site" \
            "${wheels[@]}" >> "$output/setup.log" 2>&1 || echo "pip failed: $output/setup.log" >&2
    fi
    "$python" - "$checkout" "$site" >> "$output/setup.log" 2>&1 <<'CODE' || true
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

checkout, site = map(Path, sys.argv[1:])
project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
if not entry_points(group="fspad_bench.decoders"):  # a checkout that is not installed
    folder = site / "fspad_bench-0.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: fspad-bench\nVersion: 0\n")
    groups = project["entry-points"]
    lines = []
    for group, names in groups.items():
        lines.append(f"[{group}]")
        lines += [f"{name} = {value}" for name, value in names.items()]
    (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")
CODE
}

bench() { "$python" -m fspad_bench "$@"; }

has_module() { "$python" -c "import importlib.util, sys; sys.exit(not importlib.util.find_spec('$1'))"; }

seconds_left() { echo $((budget - (SECONDS - begun))); }

# state NAME [LINES]: the state of a part's last line, empty if it was never tried.
state() {
    local lines=${2-$(cat "$summary" 2>/dev/null || true)}
    awk -F'\t' -v name="$1" '$1 == name { last = $4 } END { print last }' <<< "$lines"
}

is_done() { [[ $(state "$1") == done || $(state "$1") == finding ]]; }

# bounded SECONDS COMMAND...: run it in the background, since a signal that arrives during a command
# in the foreground waits for its end, and `timeout` has a process group that Ctrl-C does not reach.
bounded() {
    local limit=$1 code=0
    shift
    # a shell lets its background commands ignore SIGINT, which the limit is told by
    env --default-signal=INT,QUIT timeout --signal=INT --kill-after=10 "$limit" "$@" &
    wait $! || code=$?
    return "$code"
}

# interrupted SIGNAL NUMBER: pass a signal on to the part that runs, wait for its end, and exit.
interrupted() {
    local running
    trap '' INT TERM HUP
    for running in $(jobs -p); do
        kill -s "$1" "$running" 2>/dev/null || true
        wait "$running" || true
    done
    exit $((128 + $2))
}

# What Python prints of an error that is not handled, or where it cannot begin.
broken='^(Traceback|/[^:]*: (No module named|Error while finding module specification)) '

# part NAME SECONDS COMMAND...: run a part that is not done; its failure is recorded and not passed on.
part() {
    local name=$1 limit=$2 left code=0 start=$SECONDS result=done
    shift 2
    if [ -z "${AGAIN:-}" ] && is_done "$name"; then
        return 0
    fi
    left=$(seconds_left)
    limit=$((limit * ${SLOWER:-1}))
    limit=$((left < limit ? left : limit))
    if ((left < least || limit < 1)); then
        untried=$((untried + 1))
        return 0
    fi
    echo "$name (at most $limit s)" >&2
    {
        printf '$'
        printf ' %q' "$@"
        printf '\n'
    } > "$output/$name.log"
    bounded "$limit" "$@" >> "$output/$name.log" 2>&1 < /dev/null || code=$?
    if ((code == 124 || code == 137 || code == 130)); then
        result=timeout
    elif ((code == 1)) && ! grep -qE "$broken" "$output/$name.log"; then
        result=finding
    elif ((code)); then
        result=failed
    fi
    printf '%s\t%s\t%s\t%s\n' "$name" "$code" "$((SECONDS - start))" "$result" >> "$summary"
    echo "$name: $result, exit code $code, $((SECONDS - start)) s" >&2
    if [[ $result == failed || $result == timeout ]]; then
        failures=$((failures + 1))
        tail -n 5 "$output/$name.log" >&2
    fi
    pack
}

# pack: OUTPUT as an archive in pieces, the largest of four selections that fits PACK_MIB.
pack() {
    local left_out whole code selection=()
    [ -n "${PACK:-}" ] || return 0
    mkdir -p "$PACK"
    whole=$(mktemp)
    is_packed=0
    for left_out in '*.part' 'checkpoint.*' ./data '*.safetensors'; do
        selection+=("--exclude=$left_out")
        code=0
        tar -C "$output" "${selection[@]}" -czf "$whole" . || code=$?
        if ((code > 1)); then  # 1: a file was changing
            echo "tar failed with exit code $code" >&2
            break
        fi
        if (($(stat -c %s "$whole") <= pack_mib << 20)); then
            put_in_place "$whole" && is_packed=1
            break
        fi
        echo "more than $pack_mib MiB: packing less than everything" >&2
    done
    rm -f "$whole"
    ((is_packed)) || echo "$output is not packed: $PACK holds no archive of it as it is now" >&2
}

# put_in_place ARCHIVE: its pieces are written beside those of an earlier archive, and then moved.
put_in_place() {
    local new=$PACK/.$archive.new piece
    rm -rf "$new" && mkdir "$new" && split -b 15M "$1" "$new/$archive.tgz.part-" || return 1
    for piece in "$PACK/$archive".tgz.part-*; do
        [ -e "$new/$(basename "$piece")" ] || rm -f "$piece"
    done
    mv -f "$new"/* "$PACK" && rmdir "$new"
}

# end_parts: show the summary; 0 all done, 1 a part failed or timed out or the archive could not be
# written, 75 only the budget ran out.
end_parts() {
    pack
    cat "$summary" 2>/dev/null || true
    ((failures == 0 && is_packed)) || exit 1
    ((untried == 0)) || exit 75
    exit 0
}
