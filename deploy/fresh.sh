#!/usr/bin/env bash
# Runs commands in a clean Debian, as a new user with this commit, and reports minutes and disk. Needs root, debootstrap.
#   deploy/fresh.sh                the README's two commands: make demo, make test
#   deploy/fresh.sh --smoke        only make install, ctclip --version, ctclip doctor
#   deploy/fresh.sh 'COMMAND'...   the given shell commands
# Variables: SUITE (trixie), MIRROR, TREE (a tree of debootstrap to copy), GPU (of make install), TMPDIR (needs 15 GB).
# Proxies and the pip configuration of this machine apply there too. Nothing stays mounted, and the tree is deleted.
set -euo pipefail
checkout=$(cd "$(dirname "$0")/.." && pwd)

if [ "${FRESH_FOLDER:-}" = "" ]; then
    [ "$(id -u)" = 0 ] || { echo "deploy/fresh.sh needs root, for debootstrap and chroot" >&2; exit 1; }
    FRESH_FOLDER=$(mktemp --directory --tmpdir ctclip-fresh.XXXXXX)
    export FRESH_FOLDER
    # shellcheck disable=SC2317,SC2329  # called by the trap
    clean() {
        [ "${namespace:-}" = "" ] || kill -KILL "$namespace" 2>/dev/null || true
        wait
        rm -rf --one-file-system "$FRESH_FOLDER"
    }
    trap clean EXIT
    trap 'exit 143' TERM
    trap 'exit 130' INT
    # Mounts and processes end with their namespaces.
    unshare --mount --pid --fork --kill-child "$0" "$@" &
    namespace=$!
    wait "$namespace"
    exit
fi

tree=$FRESH_FOLDER/tree
case "${1:-}" in
    "") commands=("make demo" "make test") ;;
    --smoke) commands=(".venv/bin/ctclip --version" ".venv/bin/ctclip doctor") ;;
    *) commands=("$@") ;;
esac

if [ "${TREE:-}" = "" ]; then
    debootstrap --variant=minbase "${SUITE:-trixie}" "$tree" "${MIRROR:-http://deb.debian.org/debian}" >"$FRESH_FOLDER/log" ||
        { cat "$FRESH_FOLDER/log"; exit 1; }
else
    cp --archive "$TREE" "$tree"
fi
cp --dereference /etc/resolv.conf "$tree/etc/resolv.conf"
[ "$(git -C "$checkout" status --porcelain)" = "" ] || echo "uncommitted changes are left out"
git -c safe.directory='*' clone --quiet --no-hardlinks "$checkout" "$tree/opt/ctclip"

mount -t proc proc "$tree/proc"
mount --rbind /sys "$tree/sys"
mount --rbind /dev "$tree/dev"
mount -t tmpfs tmpfs "$tree/dev/shm"

environment=(PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 TERM="${TERM:-dumb}")
for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY GPU; do
    [ "${!name:-}" = "" ] || environment+=("$name=${!name}")
done
settings=$(python3 "$checkout/deploy/pip_settings.py")
while read -r line; do
    case "$line" in
        PIP_*) environment+=("$line") ;;
        /*)
            if [ -d "$line" ]; then
                mkdir --parents "$tree/host$line"
            else
                mkdir --parents "$tree/host$(dirname "$line")"
                touch "$tree/host$line"
            fi
            mount --bind --options ro "$line" "$tree/host$line"
            ;;
    esac
done <<<"$settings"

rows=()
report() {
    printf '\n%s\n' "$(sed -n 's/^PRETTY_NAME="\(.*\)"/\1/p' "$tree/etc/os-release"), commit $(git -C "$checkout" describe --always)"
    printf '%s\n' "${rows[@]}"
    for part in opt/ctclip/.venv opt/ctclip/demo home/ctclip/.cache usr; do
        [ ! -e "$tree/$part" ] || printf '%8s GB  /%s\n' "$(du --summarize --bytes "$tree/$part" | awk '{ printf "%.2f", $1 / 1e9 }')" "$part"
    done
}
trap report EXIT

measure() {  # a name, and the command that has it
    local name=$1 begin=$SECONDS status=0
    shift
    echo "== $name"
    "$@" || status=$?
    rows+=("$(awk -v s=$((SECONDS - begin)) 'BEGIN { printf "%8.1f min", s / 60 }') $name$([ $status = 0 ] || echo ": failed with $status")")
    return $status
}
in_tree() { chroot "$tree" env --ignore-environment "${environment[@]}" "$@"; }
as_user() { in_tree HOME=/home/ctclip USER=ctclip runuser --user ctclip -- bash -c "cd /opt/ctclip && $1"; }

measure "deploy/install.sh, with make install" in_tree /opt/ctclip/deploy/install.sh
for command in "${commands[@]}"; do
    measure "$command" as_user "$command"
done
