# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# To be sourced, by any shell that has local: the kernel as an ELF file out of a bzImage.  QEMU starts it
# sooner, and under an emulated KVM by far: unpacking is what the guest then does most slowly.

# little_endian FILE OFFSET BYTES
little_endian()
{
	od -An -v -j "$2" -N "$3" -t "u$3" --endian=little "$1" | tr -d ' '
}

# vmlinux_extract BZIMAGE OUT: a bzImage says where the compressed kernel is in it
# (Documentation/arch/x86/boot.rst); four bytes behind that are its size.
vmlinux_extract()
{
	local image=$1 out=$2 sectors offset length

	sectors=$(little_endian "$image" $((0x1f1)) 1)
	offset=$(($(little_endian "$image" $((0x248)) 4) + (sectors + 1) * 512))
	length=$(little_endian "$image" $((0x24c)) 4)
	tail -c "+$((offset + 1))" "$image" | head -c "$((length - 4))" >"$out.packed" || true
	case $(little_endian "$out.packed" 0 4) in
	4247762216) zstd -dcq <"$out.packed" ;;
	407642370) lz4 -dcq <"$out.packed" ;;
	*) xz -dcq <"$out.packed" ;;
	esac >"$out" || return
	rm "$out.packed"
	[ "$(little_endian "$out" 0 4)" = 1179403647 ] # ELF
}
