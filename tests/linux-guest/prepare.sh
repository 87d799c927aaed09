#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# prepare.sh OUTDIR WORKLOAD
#
# Makes OUTDIR/vmlinux from Debian's cloud kernel package (which is unpacked,
# not installed) and OUTDIR/initramfs.cpio with busybox and the static program
# WORKLOAD.  What is there and up to date is left alone, so that a prepared
# directory needs no network.  To get a newer kernel remove OUTDIR/vmlinux.
set -eu

META=linux-image-cloud-amd64
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=/dev/null
. "$here/../../tools/vmlinux.sh"

fail()
{
	echo "prepare.sh: $*" >&2
	exit 1
}

need()
{
	command -v "$1" >/dev/null || fail "$1 is needed (package $2)"
}

[ $# -eq 2 ] || fail "usage: prepare.sh OUTDIR WORKLOAD"
mkdir -p "$1"
out=$(cd "$1" && pwd)
workload=$2
[ -x "$workload" ] || fail "no workload program $workload"

# The packages depend on one kernel by its full name.
kernel_package()
{
	apt-cache depends "$META" 2>/dev/null |
		sed -n 's/^ *Depends: *\(linux-image-[0-9].*-cloud-amd64\)$/\1/p' |
		head -n 1
}

unpack_kernel()
{
	need apt-get apt
	need dpkg-deb dpkg
	need lz4 lz4
	package=$(kernel_package)
	[ -n "$package" ] ||
		fail "apt knows no $META; run 'apt-get update' first"
	tmp=$out/tmp
	rm -rf "$tmp"
	mkdir "$tmp"
	(cd "$tmp" && apt-get -q download "$package" >apt.log 2>&1) || {
		cat "$tmp/apt.log" >&2
		fail "cannot download $package; run 'apt-get update' first"
	}
	dpkg-deb -x "$tmp"/*.deb "$tmp/root"
	vmlinux_extract "$tmp"/root/boot/vmlinuz-* "$tmp/vmlinux" ||
		fail "$package is packed in a way that is not known"
	mv "$tmp/vmlinux" "$out/vmlinux"
	rm -rf "$tmp"
}

# Not compressed: unpacking costs an emulated guest more than copying.
make_initramfs()
{
	need cpio cpio
	busybox=$(command -v busybox) || fail "busybox is needed (busybox-static)"
	tree=$out/tree
	rm -rf "$tree"
	mkdir -p "$tree/bin" "$tree/proc" "$tree/sys" "$tree/dev"
	cp "$busybox" "$tree/bin/busybox"
	cp "$workload" "$tree/workload"
	cp "$here/init" "$tree/init"
	chmod 755 "$tree/init" "$tree/workload" "$tree/bin/busybox"
	# The kernel opens the console before devtmpfs is there.
	mknod "$tree/dev/console" c 5 1 2>/dev/null || true
	(cd "$tree" && find . | cpio -o -H newc --quiet -R 0:0) \
		>"$out/initramfs.new"
	mv "$out/initramfs.new" "$out/initramfs.cpio"
	rm -rf "$tree"
}

# Tests may run at the same time.
exec 9>"$out/lock"
flock 9

[ -s "$out/vmlinux" ] || unpack_kernel
for source in "$workload" "$here/init" "$here/prepare.sh"; do
	if [ ! -s "$out/initramfs.cpio" ] ||
	   [ "$source" -nt "$out/initramfs.cpio" ]; then
		make_initramfs
		break
	fi
done
