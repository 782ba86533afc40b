#!/bin/sh
# Gets the programs that the tests run against, and prints `export` lines for them:
#
#     eval "$(tests/tools.sh)"
#
# - redis-server, redis-cli, nft and ip: installed by apt-get when they are missing and this is root (or
#   sudo asks for no password); otherwise their Debian packages are unpacked into the tools folder. The
#   server's binary comes from redis-tools: the package redis-server would add nothing but a service.
# - prometheus and promtool: always unpacked, never installed, so that no service starts.
# - the Python package prometheus-client, whose OpenMetrics parser is the strictest: into the tools folder.
#
# The folder is $TEST_TOOLS_DIR, by default target/tools. A second run finds everything there.
# Progress goes to stderr.
set -eu

say() { echo "tools: $*" >&2; }

here=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
tools=${TEST_TOOLS_DIR:-$here/target/tools}
mkdir -p "$tools"
tools=$(CDPATH='' cd -- "$tools" && pwd)
# System programs such as nft live in sbin, which is not on everybody's PATH.
path="$tools/root/usr/bin:$tools/root/usr/sbin:$tools/root/sbin:$tools/root/bin"
PATH="$PATH:/usr/sbin:/sbin:$path"

if [ "$(id -u)" = 0 ]; then
    as_root=''
    root=yes
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    as_root='sudo -n'
    root=yes
else
    as_root=''
    root=no
fi

updated=no
update() {
    [ $updated = yes ] && return
    updated=yes
    [ $root = no ] && return
    say "apt-get update"
    $as_root apt-get update -qq >&2 || say "apt-get update failed; going on with the lists that are there"
}

# unpack PACKAGE...: into the tools folder, without running anything of theirs.
unpack() {
    update
    mkdir -p "$tools/packages" "$tools/root"
    for package; do
        say "apt-get download $package, unpacked into $tools/root"
        (cd "$tools/packages" && apt-get download -qq "$package" >&2)
        for file in "$tools/packages/${package}_"*.deb; do
            dpkg -x "$file" "$tools/root"
        done
    done
}

missing=''
{ command -v redis-server && command -v redis-cli; } >/dev/null 2>&1 || missing="$missing redis-tools"
command -v nft >/dev/null 2>&1 || missing="$missing nftables"
command -v ip >/dev/null 2>&1 || missing="$missing iproute2"
if [ -n "$missing" ]; then
    if [ $root = yes ]; then
        update
        say "apt-get install$missing"
        # shellcheck disable=SC2086
        $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >&2
    else
        # With the libraries that not every Debian has.
        for package in $missing; do
            case $package in
                redis-tools) unpack redis-tools libjemalloc2 liblzf1 liblua5.1-0 lua-cjson lua-bitop ;;
                nftables) unpack nftables libnftables1 libnftnl11 libjansson4 libedit2 ;;
                iproute2) unpack iproute2 libelf1 libbpf1 libcap2 libmnl0 libxtables12 ;;
            esac
        done
    fi
fi
if ! command -v redis-server >/dev/null 2>&1; then
    # One binary under two names: it is a server when it is called like one.
    mkdir -p "$tools/root/usr/bin"
    ln -sf "$(command -v redis-check-rdb)" "$tools/root/usr/bin/redis-server"
fi

if [ ! -x "$tools/root/usr/bin/promtool" ] || [ ! -x "$tools/root/usr/bin/prometheus" ]; then
    unpack prometheus
fi

if ! PYTHONPATH="$tools/python" python3 -c 'import prometheus_client.openmetrics.parser' 2>/dev/null; then
    say "python3 -m pip install --target $tools/python prometheus-client"
    if ! python3 -m pip --version >/dev/null 2>&1; then
        if [ $root = yes ]; then
            update
            $as_root env DEBIAN_FRONTEND=noninteractive \
                apt-get install -y -qq --no-install-recommends python3 python3-pip >&2
        else
            say "python3 with pip is missing: install python3-pip"
            exit 1
        fi
    fi
    python3 -m pip install --quiet --disable-pip-version-check --target "$tools/python" prometheus-client >&2
fi

echo "export PATH=\"\$PATH:/usr/sbin:/sbin:$path\""
libraries=''
for directory in "$tools"/root/usr/lib/*-linux-gnu "$tools"/root/lib/*-linux-gnu; do
    [ -d "$directory" ] && libraries="$libraries:$directory"
done
[ -z "$libraries" ] || echo "export LD_LIBRARY_PATH=\"\${LD_LIBRARY_PATH:-}$libraries\""
echo "export TEST_PROMTOOL=\"$tools/root/usr/bin/promtool\""
echo "export TEST_PROMETHEUS=\"$tools/root/usr/bin/prometheus\""
echo "export TEST_PYTHONPATH=\"$tools/python\""
