#!/bin/sh
# Fetches the programs that the tests run against, and prints `export` lines for them:
#
#     eval "$(tests/tools.sh)"
#
# - redis-server, redis-cli, nft and ip: if missing, installed by apt-get as root or with passwordless sudo;
#   otherwise their Debian packages are unpacked into the tools folder. The server's binary comes from
#   redis-tools: the package redis-server would only add a service.
# - chromium and curl: if missing, installed the same way, or unpacked.
# - prometheus with promtool, victoria-metrics, prometheus-node-exporter, prometheus-blackbox-exporter, haproxy,
#   dnsdist, nginx and caddy: always unpacked, never installed, so that no service starts. prometheus and promtool 3, which
#   Debian 12 does not have, come from Debian's suite sid through this machine's own apt source: lists and
#   packages stay in the tools folder, the machine's apt is not affected, and apt checks sid's signature as
#   usual.
# - the Python package prometheus-client, which has the strictest OpenMetrics parser: in the tools folder.
#
# The folder is $TEST_TOOLS_DIR, by default target/tools. A second run finds everything there. To use programs
# that you already have, set their paths: TEST_PROMETHEUS, TEST_PROMTOOL, TEST_PROMETHEUS_3, TEST_PROMTOOL_3,
# TEST_VICTORIA_METRICS, TEST_NODE_EXPORTER, TEST_BLACKBOX_EXPORTER, TEST_HAPROXY, TEST_DNSDIST,
# TEST_NGINX, TEST_CADDY, TEST_CERTUTIL, TEST_CHROMIUM.
# Progress goes to stderr. If a program cannot be fetched, the script fails and says what to do.
set -eu

say() { echo "tools: $*" >&2; }

# give_up LINE...: prints the lines and fails.
give_up() {
    for line; do say "$line"; done
    exit 1
}

here=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
tools=${TEST_TOOLS_DIR:-$here/target/tools}
mkdir -p "$tools"
tools=$(CDPATH='' cd -- "$tools" && pwd)
# System programs such as nft are in sbin, which is not on every user's PATH.
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
    $as_root apt-get update -qq >&2 || say "apt-get update failed; using the existing package lists"
}

# unpack PACKAGE...: unpacks packages into the tools folder, without running their scripts.
unpack() {
    update
    mkdir -p "$tools/packages" "$tools/root"
    for package; do
        say "apt-get download $package, unpacking into $tools/root"
        (cd "$tools/packages" && apt-get download -qq "$package" >&2)
        for file in "$tools/packages/${package}_"*.deb; do
            dpkg -x "$file" "$tools/root"
        done
    done
}

# needed PACKAGE: prints the package and its dependencies that this machine does not have.
needed() {
    echo "$1"
    apt-get install --simulate -qq --no-install-recommends "$1" |
        awk -v package="$1" '$1 == "Inst" && $3 !~ /^\[/ && $2 != package { print $2 }'
}

missing=''
command -v chromium >/dev/null 2>&1 || missing="$missing chromium"
{ command -v redis-server && command -v redis-cli; } >/dev/null 2>&1 || missing="$missing redis-tools"
command -v curl >/dev/null 2>&1 || missing="$missing curl"
command -v nft >/dev/null 2>&1 || missing="$missing nftables"
command -v ip >/dev/null 2>&1 || missing="$missing iproute2"
if [ -n "$missing" ]; then
    if [ $root = yes ]; then
        update
        say "apt-get install$missing"
        # shellcheck disable=SC2086
        $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >&2
    else
        for package in $missing; do
            # shellcheck disable=SC2046
            unpack $(needed "$package")
        done
    fi
fi
if ! command -v redis-server >/dev/null 2>&1; then
    # One binary under two names: called as redis-server, it is the server.
    mkdir -p "$tools/root/usr/bin"
    ln -sf "$(command -v redis-check-rdb)" "$tools/root/usr/bin/redis-server"
fi

# libraries: sets the variable of that name to the library directories in the tools folder.
libraries() {
    libraries=''
    for directory in "$tools"/root/usr/lib/*-linux-gnu "$tools"/root/lib/*-linux-gnu; do
        if [ -d "$directory" ]; then libraries="$libraries:$directory"; fi
    done
}

# runs PROGRAM [FLAG]: whether the program exists and runs with the libraries of this machine.
runs() {
    libraries
    [ -x "$1" ] && LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-}$libraries" "$1" "${2:---version}" >/dev/null 2>&1
}

# have PROGRAM VARIABLE PACKAGE [FLAG]: unpacks the package if the program does not run yet. FLAG prints its version.
have() {
    runs "$1" "${4:-}" && return
    update
    # shellcheck disable=SC2046
    unpack $(needed "$3") || say "apt-get cannot download $3"
    runs "$1" "${4:-}" || give_up "$1 is missing or does not run here" \
        "install the program of the Debian package $3 and set $2 to its path"
}

prometheus=${TEST_PROMETHEUS:-$tools/root/usr/bin/prometheus}
promtool=${TEST_PROMTOOL:-$tools/root/usr/bin/promtool}
victoria=${TEST_VICTORIA_METRICS:-$tools/root/usr/bin/victoria-metrics}
have "$prometheus" TEST_PROMETHEUS prometheus
have "$promtool" TEST_PROMTOOL prometheus
have "$victoria" TEST_VICTORIA_METRICS victoria-metrics
node_exporter=${TEST_NODE_EXPORTER:-$tools/root/usr/bin/prometheus-node-exporter}
blackbox_exporter=${TEST_BLACKBOX_EXPORTER:-$tools/root/usr/bin/prometheus-blackbox-exporter}
have "$node_exporter" TEST_NODE_EXPORTER prometheus-node-exporter
have "$blackbox_exporter" TEST_BLACKBOX_EXPORTER prometheus-blackbox-exporter
haproxy=${TEST_HAPROXY:-$tools/root/usr/sbin/haproxy}
dnsdist=${TEST_DNSDIST:-$tools/root/usr/bin/dnsdist}
have "$haproxy" TEST_HAPROXY haproxy -v
have "$dnsdist" TEST_DNSDIST dnsdist
nginx=${TEST_NGINX:-$tools/root/usr/sbin/nginx}
caddy=${TEST_CADDY:-$tools/root/usr/bin/caddy}
have "$nginx" TEST_NGINX nginx -v
have "$caddy" TEST_CADDY caddy version
certutil=${TEST_CERTUTIL:-$tools/root/usr/bin/certutil}
[ -x "$certutil" ] || unpack libnss3-tools
chromium=${TEST_CHROMIUM:-$(command -v chromium || echo "$tools/root/usr/lib/chromium/chromium")}

# sid_source DIRECTORY: writes a copy of this machine's first apt source of a Debian release, with its address,
# keys and other options, but for the suite sid. Prints the name of the file.
sid_source() {
    sourcelist='' sourceparts=''
    eval "$(apt-config shell sourcelist Dir::Etc::sourcelist/f sourceparts Dir::Etc::sourceparts/d)"
    suites="stable oldstable testing unstable sid $(. /etc/os-release && echo "${VERSION_CODENAME:-}")"

    # One source per line: deb [OPTIONS] ADDRESS SUITE COMPONENT...
    for file in "$sourcelist" "$sourceparts"/*.list; do
        [ -r "$file" ] || continue
        awk -v suites="$suites" '
            BEGIN { split(suites, names, " "); for (i in names) release[names[i]] = 1 }
            $1 == "deb" {
                options = ""
                if ($2 ~ /^\[/ && match($0, /\[[^]]*\]/)) {
                    options = substr($0, RSTART, RLENGTH) " "
                    $0 = "deb " substr($0, RSTART + RLENGTH)
                }
                if ($3 in release && $2 !~ /^cdrom:/ && !found++) print "deb " options $2 " sid main"
            }' "$file" >"$1/sid.list"
        [ -s "$1/sid.list" ] && echo "$1/sid.list" && return
    done

    # Paragraphs of fields (deb822). A line that begins with a space continues the field above it, as the lines
    # of a key do.
    for file in "$sourceparts"/*.sources; do
        [ -r "$file" ] || continue
        awk -v suites="$suites" '
            function finish(    i, here) {
                for (i in named) if (named[i] in release) here = 1
                if (here && type && !off && !found++)
                    print "Types: deb\nSuites: sid\nComponents: main\n" kept
                kept = ""; type = 0; off = 0; field = ""; split("", named)
            }
            BEGIN { split(suites, names, " "); for (i in names) release[names[i]] = 1 }
            /^#/ { next }
            /^[ \t]*$/ { finish(); next }
            {
                line = $0
                if (line !~ /^[ \t]/) {
                    field = tolower(line); sub(/:.*/, "", field)
                    sub(/^[^:]*:/, "", line)
                }
                count = split(line, words, " ")
                if (field == "types") for (i = 1; i <= count; i++) type = type || words[i] == "deb"
                else if (field == "suites") for (i = 1; i <= count; i++) named[NR " " i] = words[i]
                else if (field == "enabled") off = tolower(words[1]) ~ /^(no|false|0|off|without|disable)$/
                else if (field != "components") kept = kept $0 "\n"
            }
            END { finish() }' "$file" >"$1/sid.sources"
        [ -s "$1/sid.sources" ] && echo "$1/sid.sources" && return
    done
    return 1
}

# unpack_from_sid PACKAGE...: unpacks into a root of its own, whose libraries no other program uses.
unpack_from_sid() {
    work=$tools/sid/apt
    rm -rf "$work"
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/packages" "$work/nothing"
    source=$(sid_source "$work") || {
        say "no apt source of a Debian release in $(apt-config dump Dir::Etc::sourcelist) or next to it"
        return 1
    }
    # Uses only sid: no pins, default release, installed packages or hooks of the machine.
    cat >"$work/apt.conf" <<END
Dir::Etc::sourcelist "$source";
Dir::Etc::sourceparts "$work/nothing";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "$work/nothing";
Dir::State::lists "$work/lists";
Dir::State::status "/dev/null";
Dir::Cache "$work/cache";
APT::Default-Release "sid";
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
END
    say "apt-get update with $source"
    if ! apt-get update -qq -c "$work/apt.conf" >&2; then
        say "if the signature could not be checked, install a newer debian-archive-keyring"
        return 1
    fi
    say "apt-get download $* from sid, unpacking into $tools/sid/root"
    (cd "$work/packages" && apt-get download -qq -c "$work/apt.conf" "$@" >&2) || return 1
    for file in "$work/packages"/*.deb; do
        dpkg -x "$file" "$tools/sid/root" || return 1
    done
    rm -rf "$work"
}

prometheus_3=${TEST_PROMETHEUS_3:-$tools/sid/root/usr/bin/prometheus}
promtool_3=${TEST_PROMTOOL_3:-$tools/sid/root/usr/bin/promtool}
if ! runs "$prometheus_3" || ! runs "$promtool_3"; then
    unpack_from_sid prometheus promtool || say "cannot get Prometheus from Debian sid"
    runs "$prometheus_3" && runs "$promtool_3" || give_up "Prometheus 3 is missing or does not run here" \
        "install prometheus and promtool of a 3.x release and set TEST_PROMETHEUS_3 and TEST_PROMTOOL_3" \
        "to their paths"
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
libraries
[ -z "$libraries" ] || echo "export LD_LIBRARY_PATH=\"\${LD_LIBRARY_PATH:-}$libraries\""
echo "export TEST_PROMTOOL=\"$promtool\""
echo "export TEST_PROMETHEUS=\"$prometheus\""
echo "export TEST_PROMETHEUS_3=\"$prometheus_3\""
echo "export TEST_PROMTOOL_3=\"$promtool_3\""
echo "export TEST_VICTORIA_METRICS=\"$victoria\""
echo "export TEST_NODE_EXPORTER=\"$node_exporter\""
echo "export TEST_BLACKBOX_EXPORTER=\"$blackbox_exporter\""
echo "export TEST_HAPROXY=\"$haproxy\""
echo "export TEST_DNSDIST=\"$dnsdist\""
echo "export TEST_NGINX=\"$nginx\""
echo "export TEST_CADDY=\"$caddy\""
echo "export TEST_CERTUTIL=\"$certutil\""
echo "export TEST_CHROMIUM=\"$chromium\""
echo "export TEST_PYTHONPATH=\"$tools/python\""
