# shellcheck shell=bash
# shellcheck disable=SC2154  # opt_*, here: from run
# SPDX-License-Identifier: Apache-2.0
#
# To be sourced by run: the command runs here and reaches two real hosts by ssh, with the
# same variables as in the VM.

# The devices with an active port that have a network device, one in a line with its address
# shellcheck disable=SC2016
hosts_rails='
	rdma link show | sed -n "s,^link \([^/]*\)/[0-9]* state ACTIVE .* netdev \([^ ]*\).*,\1 \2,p" |
	while read -r device netdev; do
		address=$(ip -o -4 address show dev "$netdev" | sed -n "s,.* inet \([0-9.]*\)/.*,\1,p;q")
		[ -z "$address" ] || echo "$device $address"
	done
'

# rails HOST ROLE: sets and exports LAB_ROLE, LAB_ROLE_DEV and LAB_ROLE_ADDR
hosts_rails()
{
	local host=$1 role=$2 found='' ask=(true) device address devices='' addresses='' name=LAB_$2_ADDR

	export "LAB_$role=$here/on-host $host"
	[ -n "${!name-}" ] || ask=(bash -c "$hosts_rails")
	found=$("$here/on-host" "$host" "${ask[@]}") ||
		fail "ssh to $host does not work without a question: try 'ssh -o BatchMode=yes $host true'"
	if [ -z "${!name-}" ]; then
		while read -r device address; do
			devices+=,$device
			addresses+=,$address
		done <<<"$found"
		[ -n "${addresses#,}" ] ||
			fail "$host has no active RDMA device with an IPv4 address; set $name (and LAB_${role}_DEV)"
		export "$name=${addresses#,}" "LAB_${role}_DEV=${devices#,}"
	fi
	echo "tools/lab: host ${role,} is $host, rails ${!name}" >&2
}

# What a command must know: LAB_OUT, too, with or without --out
hosts_environment()
{
	local word

	export LAB=hosts LAB_WITH='' LAB_ENV='' LAB_OUT=$opt_out
	if [ -z "$opt_out" ]; then
		LAB_OUT=$(mktemp -d) || fail "there is no room for temporary files"
		trap 'rm -rf "$LAB_OUT"' EXIT
	fi
	for word in "${opt_env[@]}"; do
		export "${word?}"
		LAB_ENV+=" ${word%%=*}"
	done
}

# follow COMMAND...: to its end or the time limit; whoever ends us ends it
hosts_follow()
{
	local child status

	timeout -k 10 "$opt_time_limit" "$@" </dev/null &
	child=$!
	trap 'kill -TERM "$child" 2>/dev/null' HUP INT TERM
	while :; do
		wait "$child"
		status=$?
		kill -0 "$child" 2>/dev/null || break
	done
	# It did not heed SIGTERM at the limit.
	[ "$status" != 137 ] || [ "$SECONDS" -lt "$opt_time_limit" ] || status=124
	[ "$status" != 124 ] || echo "tools/lab: ended after $opt_time_limit s (--time-limit)" >&2
	return "$status"
}

hosts_run_command()
{
	[[ $here != *[[:space:]]* ]] || fail "this does not work in a folder with blanks in its name: $here"
	[ -z "$opt_with" ] || fail "--with is for the VM: real hosts have what they have"
	[ "$opt_hugepages" = 0 ] || fail "--hugepages is for the VM"
	hosts_rails "${opt_hosts%,*}" A
	hosts_rails "${opt_hosts#*,}" B
	hosts_environment
	ulimit -l unlimited 2>/dev/null
	SECONDS=0
	hosts_follow "$@"
}
