#!/bin/sh
# `customize.sh ROOT`: makes ROOT, into which busybox-static was unpacked, a root file system of
# /bin/busybox and a link for each of its applets.
set -eu

root=${1:?usage: customize.sh ROOT}
busybox=$root/bin/busybox

only_busybox() {
    mv "$busybox" "$root/.busybox"
    find "$root" -xdev -mindepth 1 -maxdepth 1 ! -name .busybox ! -name dev -exec rm -rf {} +
    mkdir -p "$root/bin" "$root/sbin" "$root/usr/bin" "$root/usr/sbin" "$root/etc"
    mv "$root/.busybox" "$busybox"
    chmod 755 "$busybox"
}

applet_links() {
    "$busybox" --list-full | while IFS= read -r applet; do
        [ "$applet" = bin/busybox ] || ln -sf /bin/busybox "$root/$applet"
    done
}

# busybox's own mounts and logins are of no use to a build; the names must resolve, though.
names() {
    printf '%s\n' 'root:x:0:0:root:/:/bin/false' 'nobody:x:65534:65534:nobody:/:/bin/false' >"$root/etc/passwd"
    printf '%s\n' 'root:x:0:' 'nogroup:x:65534:' >"$root/etc/group"
}

only_busybox
applet_links
names
