# shellcheck shell=bash
# Where things are: the build directory, the Postgres to build for, the private server; sourced by the
# scripts in tests/bin, and through tests/bin/locate by the Makefile.
#
# A private server is a copy of the installed Postgres (Postgres finds its files relative to its own
# binary, so a copied tree works) into which the extension is installed. Nothing below /usr changes.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)

fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# The directory cargo builds into. CI keeps it outside the clone, so that a clean clone builds quickly.
build_dir() {
    local cached=${HOME:-/nonexistent}/.cache/kalamdb/target
    if [ -n "${CARGO_TARGET_DIR:-}" ]; then
        realpath -m "$CARGO_TARGET_DIR"
    elif [ -n "${CI:-}" ] || [ -d "$cached" ]; then
        echo "$cached"
    else
        echo "$ROOT/target"
    fi
}

# Prints the pg_config of the first Postgres with server headers among the supported versions.
# The one in the search path comes first when it is of the default version.
find_pg_config() {
    local candidate
    if [ -n "${PG_CONFIG:-}" ]; then
        command -v "$PG_CONFIG" || fail "PG_CONFIG=$PG_CONFIG: no such command"
        return
    fi
    candidate=$(command -v pg_config || true)
    case "$([ -z "$candidate" ] || "$candidate" --version)" in
        "PostgreSQL 15"*) ;;
        *) candidate= ;;
    esac
    for candidate in $candidate /usr/lib/postgresql/{15,16,17,18}/bin/pg_config; do
        if [ -x "$candidate" ] && [ -f "$("$candidate" --includedir-server)/postgres.h" ]; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

# The user the server runs as: Postgres refuses to run as root.
server_user() {
    if [ "$(id -u)" = 0 ]; then
        echo "${KALAM_SERVER_USER:-postgres}"
    else
        id -un
    fi
}

# What goes before a command to run it as the server's user.
AS_SERVER=()
if [ "$(id -u)" = 0 ]; then AS_SERVER=(runuser -u "$(server_user)" --); fi

# Runs a command as the server's user, from a directory that user can enter.
as_server() {
    (cd / && exec ${AS_SERVER[@]+"${AS_SERVER[@]}"} "$@")
}

# Creates a directory that belongs to the server's user.
own_dir() {
    if [ "$(id -u)" = 0 ]; then
        install -d -o "$(server_user)" "$1"
    else
        install -d "$1"
    fi
}

# Private servers live in the clone, except where the server's user cannot enter it (a clone in root's home).
# KALAM_SERVER_DIR overrides that.
server_dir() {
    if [ -n "${KALAM_SERVER_DIR:-}" ]; then
        realpath -m "$KALAM_SERVER_DIR"
    elif as_server test -x "$ROOT" 2>/dev/null; then
        echo "$ROOT/target/server"
    else
        echo "/var/tmp/kalamdb-$(printf %s "$ROOT" | cksum | cut -d' ' -f1)"
    fi
}

# Prints the pg_config of the private copy, which `tests/bin/cluster install` makes.
private_pg_config() {
    local config=$1 server=$2
    case "$config" in
        "$server"/*) echo "$config" ;;
        *) echo "$server/postgres$("$config" --bindir)/pg_config" ;;
    esac
}

# The test drivers that come with a Postgres's server headers.
pg_regress_of() {
    echo "$(dirname "$("$1" --pgxs)")/../test/regress/pg_regress"
}

pg_isolation_regress_of() {
    echo "$(dirname "$("$1" --pgxs)")/../test/isolation/pg_isolation_regress"
}

# Points cargo and pgrx at the build directory and at the Postgres to build for.
export_build() {
    local config major
    config=$(find_pg_config) || fail "no PostgreSQL 15 to 18 with server headers found; run \`make setup\`"
    major=$("$config" --version | sed 's/^PostgreSQL \([0-9]*\).*/\1/')
    CARGO_TARGET_DIR=$(build_dir)
    export CARGO_TARGET_DIR PGRX_PG_CONFIG_PATH=$config
    # The default feature is pg15. An empty list keeps cargo's cache of a plain build.
    # shellcheck disable=SC2034 # the sourcing scripts use it
    CARGO_FEATURES=()
    if [ "$major" != 15 ]; then
        # shellcheck disable=SC2034
        CARGO_FEATURES=(--no-default-features --features "kalamdb/pg$major")
    fi
}

# begin_flusher DATABASE FILE, end_flusher FILE: with FLUSHER set, tests/bin/flusher makes the database's tables cold in between, and the end
# says how much that was.
begin_flusher() {
    if [ -z "${FLUSHER:-}" ]; then return; fi
    rm -f "$2" "$2.errors"
    # A process group of its own: it ends together with its psql.
    setsid "$ROOT/tests/bin/flusher" "$1" "$2" &
    flusher=$!
}

end_flusher() {
    if [ -z "${flusher:-}" ]; then return; fi
    kill -- -"$flusher" 2>/dev/null || true
    wait "$flusher" 2>/dev/null || true
    flusher=
    awk -F'|' '{ runs[$1]++; rows[$1] += $3; blocks[$1] += $4; tables[$1, $2] || count[$1]++; tables[$1, $2] = 1 }
        END { for (kind in runs) printf "%s: %d runs moved %d rows in %d blocks of %d tables\n", kind, runs[kind], rows[kind], blocks[kind], count[kind] }' \
        "$1" 2>/dev/null || true
}
