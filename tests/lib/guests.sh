# shellcheck shell=bash disable=SC2034,SC2154
# SPDX-License-Identifier: Apache-2.0
#
# To be sourced by tests that move a guest between the hosts a and b, after lab.sh: ENGINE and GUEST are
# $engine and $guest, LAB_A, LAB_B and LAB_B_ADDR say where (tools/lab/README.md).  The guest checks its memory.
#
# The hosts may be other machines than this one.  So $dir and $ram-* are names that are free on all of them, and
# what is there is only reached by $LAB_A and $LAB_B: sockets, the guests' memory, QEMUs.  Here, in $dir, is what
# comes in through them: send and receive, which the engines say, and serial-a and serial-b, which the guests say.
mib=96
machine='-accel tcg,tb-size=32 -cpu max -M microvm,rtc=on,memory-backend=ram0' # runs its firmware in half the time of q35
boot=(-kernel "$guest" -append 'mb=56 rate=150')
boot_seconds=40
send_options='' receive_options='' # of every engine
dir=$(mktemp -d)
export XDG_RUNTIME_DIR=$dir # for the sockets of the QEMUs that receive starts
export LAB_ENV="${LAB_ENV-} XDG_RUNTIME_DIR"
ram=/dev/shm/lm-moved-${dir##*.}
IFS=, read -ra b_addr <<<"$LAB_B_ADDR"
IFS=, read -ra a_dev <<<"${LAB_A_DEV-}"
IFS=, read -ra b_dev <<<"${LAB_B_DEV-}"
source_pid='' receive_pid='' followers=() fault='' fault_in_lane=''

# shellcheck disable=SC2317,SC2329 # called by the trap, and by who sets another
end_all()
{
	local pid

	for pid in $source_pid $receive_pid "${followers[@]}"; do
		{ kill "$pid" && wait "$pid"; } 2>/dev/null
	done
	end_destination
	$LAB_A rm -rf "$dir" "$ram-a"
	$LAB_B rm -rf "$dir" "$ram-b"
	rm -rf "$dir"
}
trap end_all EXIT

qemu()
{
	local side=$1

	echo qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot "$machine" -m ${mib}M \
		-object "memory-backend-file,id=ram0,size=${mib}M,mem-path=$ram-$side,share=on" \
		-serial "file:$dir/console-$side"
}

# said FILE TEXT: without a process, for it is asked often (pause in lib.sh).  What follows a NUL in a line is not seen.
said()
{
	local lines

	{ mapfile -t lines <"$1"; } 2>/dev/null && [[ ${lines[*]} == *"$2"* ]]
}

# harmed FILE: the guest has found memory that is not right, anywhere in what it said
harmed()
{
	grep -aq 'BAD page' "$1"
}

# ticks FILE: how often the guest has said that it lives
ticks()
{
	grep -ac '^tick' "$1" 2>/dev/null || true
}

# new_folder HOST-PREFIX...: empty, and without the memory of earlier guests
new_folder()
{
	# shellcheck disable=SC2016 # a script for the host
	"$@" sh -c 'rm -rf "$1" "$2"-? && mkdir -p "$1" && chmod 700 "$1"' sh "$dir" "$ram"
}

# In the background: what the guests say from now on
follow()
{
	$LAB_A tail -n +1 -s 0.1 -F "$dir/console-a" >"$dir/serial-a" 2>/dev/null &
	followers=($!)
	$LAB_B tail -n +1 -s 0.1 -F "$dir/console-b" >"$dir/serial-b" 2>/dev/null &
	followers+=($!)
}

# In the background: the guest on host a, and a destination that waits for it.
start()
{
	# shellcheck disable=SC2086
	new_folder $LAB_A && new_folder $LAB_B && mkdir -p "$dir"
	follow
	# shellcheck disable=SC2046
	$LAB_A $(qemu a) "${boot[@]}" -qmp "unix:$dir/a.qmp,server=on,wait=off" &
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

	pid=$(sed -n '/"event":"qemu"/s/.*"pid":\([0-9]*\).*/\1/p' "$dir/receive" 2>/dev/null)
	# shellcheck disable=SC2016 # a script for the host
	[ -z "$pid" ] || $LAB_B bash -c '
		while grep -aqF "$2" "/proc/$1/cmdline" 2>/dev/null; do
			kill -9 "$1"
			sleep 0.1
		done' bash "$pid" "mem-path=$ram-b"
}

# The source has gone when its socket has: where a prefix is ssh, that is later than its end.
stop()
{
	kill "$source_pid" 2>/dev/null
	wait "$source_pid" 2>/dev/null
	# shellcheck disable=SC2016 # a script for the host
	$LAB_A timeout 10 sh -c 'while [ -e "$1" ]; do sleep 0.1; done' sh "$dir/a.qmp"
	wait "$receive_pid"
	end_destination
	kill "${followers[@]}"
	wait "${followers[@]}" 2>/dev/null
	source_pid='' receive_pid='' followers=()
}

show()
{
	# shellcheck disable=SC2154 # of lib.sh
	[ "$failed" = 0 ] || grep -h '"event":"lane"' "$dir/send" "$dir/receive"
	[ "$failed" = 0 ] || tail -n 5 "$dir/send" "$dir/receive" "$dir"/serial-* 2>/dev/null
}

runs_at_destination()
{
	local before

	before=$(ticks "$dir/serial-b")
	sleep 2
	[ "$(ticks "$dir/serial-b")" -gt "$before" ] && ! harmed "$dir/serial-b"
}

runs_at_source()
{
	local before

	before=$(ticks "$dir/serial-a")
	sleep 2
	[ "$(ticks "$dir/serial-a")" -gt "$before" ] && ! harmed "$dir/serial-a"
}

# when TEXT COMMAND...: as soon as the source says so
when()
{
	local text=$1
	shift
	(eventually 60 said "$dir/send" "$text" && "$@") &
}
