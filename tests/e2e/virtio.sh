#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# virtio.sh OUTDIR
#
# QEMU refuses to migrate its NVMe controller, and the cloud kernel has virtio as
# modules.  This makes OUTDIR/virtio.cpio, to be appended to the Linux guest's
# initramfs (the kernel unpacks one archive after the other): the modules of the
# disk and the balloon, and an init that loads them and goes on with the guest's
# own.  Kernel and modules must be of one package, so OUTDIR/vmlinux comes from
# here, too; prepare.sh leaves it alone when it is there.
set -eu

META=linux-image-cloud-amd64
MODULES='virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk virtio_balloon'
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=/dev/null
. "$here/../../tools/vmlinux.sh"

fail()
{
	echo "virtio.sh: $*" >&2
	exit 1
}

[ $# -eq 1 ] || fail "usage: virtio.sh OUTDIR"
mkdir -p "$1"
out=$(cd "$1" && pwd)
for program in apt-cache apt-get dpkg-deb cpio lz4; do
	command -v "$program" >/dev/null || fail "$program is needed"
done

unpack_kernel()
{
	package=$(apt-cache depends "$META" 2>/dev/null |
		sed -n 's/^ *Depends: *\(linux-image-[0-9].*-cloud-amd64\)$/\1/p' | head -n 1)
	[ -n "$package" ] || fail "apt knows no $META; run 'apt-get update' first"
	tmp=$out/virtio.tmp
	rm -rf "$tmp"
	mkdir "$tmp"
	(cd "$tmp" && apt-get -q download "$package" >apt.log 2>&1) || {
		cat "$tmp/apt.log" >&2
		fail "cannot download $package; run 'apt-get update' first"
	}
	dpkg-deb -x "$tmp"/*.deb "$tmp/root"
	rm -rf "$out/modules"
	mkdir "$out/modules"
	for m in $MODULES; do
		find "$tmp/root/lib/modules" -name "$m.ko" -exec cp '{}' "$out/modules/" ';'
		[ -s "$out/modules/$m.ko" ] || fail "$package has no $m.ko"
	done
	vmlinux_extract "$tmp"/root/boot/vmlinuz-* "$tmp/vmlinux" ||
		fail "$package is packed in a way that is not known"
	mv "$tmp/vmlinux" "$out/vmlinux"
	rm -rf "$tmp"
}

make_cpio()
{
	tree=$out/virtio.tree
	rm -rf "$tree"
	mkdir "$tree" "$tree/modules"
	cp "$out"/modules/*.ko "$tree/modules/"
	cp "$here/../linux-guest/init" "$tree/init.guest"
	{
		echo '#!/bin/busybox sh'
		for m in $MODULES; do
			echo "/bin/busybox insmod /modules/$m.ko"
		done
		echo 'exec /init.guest'
	} >"$tree/init"
	chmod 755 "$tree/init" "$tree/init.guest"
	(cd "$tree" && find . | cpio -o -H newc --quiet -R 0:0) >"$out/virtio.new"
	mv "$out/virtio.new" "$out/virtio.cpio"
	rm -rf "$tree"
}

# The same lock as prepare.sh.
exec 9>"$out/lock"
flock 9
if [ ! -s "$out/vmlinux" ] || [ ! -s "$out/modules/virtio_balloon.ko" ]; then
	unpack_kernel
fi
make_cpio
