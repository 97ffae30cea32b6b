#!/bin/sh
# What every image of ours gets, however it was made: `harden.sh ROOT`, ROOT the image's top
# directory ("/" in a Dockerfile, the tree that mmdebstrap hands to its hook).
# Needs a POSIX shell, coreutils and findutils where it runs; the image itself needs nothing.
set -eu

root=${1:?usage: harden.sh ROOT}
root=${root%/}

first_build_uid=20000
build_uids=512
keeper=65533

# One living sandbox has one uid of this range to itself, and initdb, ssh and others give up when
# their own uid has no name.
accounts() {
    mkdir -p "$root/etc"
    touch "$root/etc/passwd" "$root/etc/group"
    if grep -q '^sandbox-keeper:' "$root/etc/passwd"; then return; fi
    echo "sandbox-keeper:x:$keeper:$keeper:keeper of the sandbox:/:/bin/false" >>"$root/etc/passwd"
    echo "sandbox-keeper:x:$keeper:" >>"$root/etc/group"
    number=0
    while [ "$number" -lt "$build_uids" ]; do
        uid=$((first_build_uid + number))
        echo "build$number:x:$uid:$uid:sandboxed build:/build:/bin/sh" >&3
        echo "build$number:x:$uid:" >&4
        number=$((number + 1))
    done 3>>"$root/etc/passwd" 4>>"$root/etc/group"
}

# The root file system is read-only in a sandbox: what is mounted over must be there, as a real
# directory and not as a link that leads the mount elsewhere.
mount_points() {
    for place in build tmp dev/shm proc sys run/secrets; do
        if [ -L "$root/$place" ]; then rm "$root/$place"; fi
        mkdir -p "$root/$place"
    done
    chmod 755 "${root:-/}" "$root/build" "$root/run" "$root/run/secrets"
    chmod 1777 "$root/tmp" "$root/dev/shm"
}

# `chown` makes the kernel drop a file's capabilities, with no tool that knows about them; so the
# order matters: owners first, then the mode bits.
no_privileges() {
    find "${root:-/}" -xdev -type f -perm /111 -exec chown 0:0 {} +
    find "${root:-/}" -xdev \( -type f -o -type d \) -perm /6000 -exec chmod ug-s {} +
}

# Nobody reads manuals in a build; copyright files stay, as an image may be passed on.
slim() {
    find "$root/usr/share/doc" -mindepth 2 ! -type d ! -name copyright -delete 2>/dev/null || true
    find "$root/usr/share/doc" -type d -empty -delete 2>/dev/null || true
    rm -f "$root"/usr/bin/*lto-dump* # 30 MB for people who debug the compiler
    rm -rf "$root/usr/share/man" "$root/usr/share/info" "$root/usr/share/locale" \
        "$root/usr/share/doc-base" "$root/usr/share/lintian" \
        "$root/var/lib/apt/lists" "$root/var/cache/apt" "$root/var/cache/debconf" \
        "$root/var/cache/ldconfig" "$root/var/log"
    mkdir -p "$root/var/lib/apt/lists/partial" "$root/var/cache/apt/archives/partial" "$root/var/log"
}

# Of the machine that made the image nothing may remain, and no two images should differ by it.
# In a Dockerfile these are the engine's own mounts, which cannot be removed and are not stored.
no_traces() {
    rm -f "$root/etc/apt/apt.conf.d/99mmdebstrap" "$root/var/lib/dbus/machine-id" \
        "$root/etc/passwd-" "$root/etc/group-" "$root/etc/shadow-" "$root/etc/gshadow-"
    for name in hostname resolv.conf; do rm -f "$root/etc/$name" 2>/dev/null || true; done
    if [ -e "$root/etc/machine-id" ]; then : >"$root/etc/machine-id"; fi
    if [ -f "$root/etc/apt/sources.list" ]; then # a mirror's address may carry a password
        sed -i 's#://[^/@ ]*@#://#' "$root/etc/apt/sources.list"
    fi
}

if [ -d "$root/usr/share" ]; then slim; fi
if [ ! -L "$root/etc/passwd" ]; then accounts; fi
no_traces
mount_points
no_privileges
