# shellcheck shell=bash
# Start servers, wait until they answer, and stop them with the script. To be sourced.
#
# - output: the folder of the servers' logs. python: an interpreter.
servers=()
trap 'for server in "${servers[@]}"; do kill "$server" 2> /dev/null || true; done' EXIT

answers() {  # answers PORT: whether a server there lists its models
    "$python" -c "import urllib.request as u
u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:$1/v1/models', timeout=10)" 2> /dev/null
}

serve() {  # serve PORT COMMAND...: starts a server and waits until it lists its models
    local port=$1
    shift
    if (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null; then
        echo "port $port is another process's: give PORT, the first of five free ones" >&2
        return 1
    fi
    "$@" > "$output/server-$port.log" 2>&1 &
    servers+=($!)
    for _ in $(seq 600); do
        if ! kill -0 $! 2> /dev/null; then
            break
        fi
        if answers "$port" && kill -0 $! 2> /dev/null; then
            return
        fi
        sleep 0.2
    done
    echo "no server on port $port: see $output/server-$port.log" >&2
    return 1
}

stop() {
    kill "${servers[@]}" 2> /dev/null || true
    wait "${servers[@]}" 2> /dev/null || true
    servers=()
}
