# shellcheck shell=bash disable=SC2034,SC2154
# SPDX-License-Identifier: Apache-2.0
#
# To be sourced by tests that move a guest between the hosts a and b, after lab.sh: ENGINE and GUEST are
# $engine and $guest, LAB_A, LAB_B and LAB_B_ADDR say where (tools/lab/README.md).  The guest checks its memory.
mib=96
machine='-accel tcg,tb-size=32 -cpu max -M q35,memory-backend=ram0'
boot=(-kernel "$guest" -append 'mb=56 rate=150')
boot_seconds=40
send_options='' receive_options='' # of every engine
dir=$(mktemp -d)
export XDG_RUNTIME_DIR=$dir # for the sockets of the QEMUs that receive starts
ram=/dev/shm/lm-moved-$$
# shellcheck disable=SC2317,SC2329 # called by the trap, and by who sets another
remove_files()
{
	rm -rf "$dir" "$ram"-*
}
trap remove_files EXIT
IFS=, read -ra b_addr <<<"$LAB_B_ADDR"
source_pid='' receive_pid='' fault='' fault_in_lane=''

qemu()
{
	local side=$1

	echo qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot "$machine" -m ${mib}M \
		-object "memory-backend-file,id=ram0,size=${mib}M,mem-path=$ram-$side,share=on" \
		-serial "file:$dir/serial-$side"
}

said()
{
	grep -a -e "$2" "$1" >/dev/null 2>&1
}

# ticks FILE: how often the guest has said that it lives
ticks()
{
	grep -ac '^tick' "$1" 2>/dev/null || true
}

# In the background: the guest on host a, and a destination that waits for it.
start()
{
	rm -rf "${dir:?}"/* "$ram"-*
	# shellcheck disable=SC2046
	$(qemu a) "${boot[@]}" -qmp "unix:$dir/a.qmp,server=on,wait=off" &
	source_pid=$!
	eventually "$boot_seconds" said "$dir/serial-a" READY
	# shellcheck disable=SC2046,SC2086
	$LAB_B "$engine" receive --listen "${b_addr[0]}:7777" --insecure --json $receive_options -- \
		$(qemu b) "${boot[@]}" >"$dir/receive" 2>&1 &
	receive_pid=$!
	eventually 40 said "$dir/receive" '"listening"'
}

# send OPTION...: the engine's exit status
send()
{
	# shellcheck disable=SC2086
	$LAB_A env LM_FAULT="$fault" LM_TRANSPORT_FAULT="$fault_in_lane" "$engine" send --qmp "$dir/a.qmp" \
		--to "${b_addr[0]}:7777" --insecure --json $send_options --max-downtime 300ms "$@" >"$dir/send" 2>&1
}

# The QEMU that receive has started lives on: by the process id that receive said.
end_destination()
{
	local pid

	pid=$(sed -n '/"event":"qemu"/s/.*"pid":\([0-9]*\).*/\1/p' "$dir/receive")
	[ -n "$pid" ] && kill -9 "$pid" 2>/dev/null && sleep 1
	return 0
}

stop()
{
	kill "$source_pid" 2>/dev/null
	wait "$source_pid" 2>/dev/null
	wait "$receive_pid"
	end_destination
}

show()
{
	# shellcheck disable=SC2154 # of lib.sh
	[ "$failed" = 0 ] || tail -n 5 "$dir/send" "$dir/receive" "$dir"/serial-* 2>/dev/null
}

runs_at_destination()
{
	local before

	before=$(ticks "$dir/serial-b")
	sleep 2
	[ "$(ticks "$dir/serial-b")" -gt "$before" ] && ! said "$dir/serial-b" 'BAD page'
}

runs_at_source()
{
	local before

	before=$(ticks "$dir/serial-a")
	sleep 2
	[ "$(ticks "$dir/serial-a")" -gt "$before" ] && ! said "$dir/serial-a" 'BAD page'
}

# when PATTERN COMMAND...: as soon as the source says so
when()
{
	local pattern=$1
	shift
	(eventually 60 said "$dir/send" "$pattern" && "$@") &
}
