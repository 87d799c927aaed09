# shellcheck shell=bash
# shellcheck disable=SC2154  # opt_*, here: from run
# SPDX-License-Identifier: Apache-2.0
#
# To be sourced by run: the command runs here and reaches two real hosts by ssh, with the
# same variables as in the VM.

# The devices with an active port that have a network device, one in a line with its address
# shellcheck disable=SC2016
hosts_rails='
	PATH=$PATH:/usr/sbin:/sbin
	rdma link show | sed -n "s,^link \([^/]*\)/[0-9]* state ACTIVE .* netdev \([^ ]*\).*,\1 \2,p" |
	while read -r device netdev; do
		address=$(ip -o -4 address show dev "$netdev" | sed -n "s,.* inet \([0-9.]*\)/.*,\1,p;q")
		[ -z "$address" ] || echo "$device $address"
	done
'

hosts_reach()
{
	local host

	for host in "$@"; do
		"$here/on-host" "$host" true ||
			fail "ssh to $host does not work without a question: try 'ssh -o BatchMode=yes $host true'"
	done
}

# rails HOST ROLE: sets and exports LAB_ROLE, LAB_ROLE_DEV and LAB_ROLE_ADDR
hosts_rails()
{
	local host=$1 role=$2 device address devices='' addresses='' name=LAB_$2_ADDR

	export "LAB_$role=$here/on-host $host"
	if [ -z "${!name-}" ]; then
		while read -r device address; do
			devices+=,$device
			addresses+=,$address
		done < <("$here/on-host" "$host" bash -c "$hosts_rails")
		[ -n "$addresses" ] ||
			fail "$host has no active RDMA device with an IPv4 address; set $name (and LAB_${role}_DEV)"
		export "$name=${addresses#,}" "LAB_${role}_DEV=${devices#,}"
	fi
	echo "tools/lab: host ${role,} is $host, rails ${!name}" >&2
}

hosts_run_command()
{
	local a=${opt_hosts%,*} b=${opt_hosts#*,} word

	[[ $here != *[[:space:]]* ]] || fail "this does not work in a folder with blanks in its name: $here"
	[ -z "$opt_with" ] || fail "--with is for the VM: real hosts have what they have"
	[ "$opt_hugepages" = 0 ] || fail "--hugepages is for the VM"
	hosts_reach "$a" "$b"
	hosts_rails "$a" A
	hosts_rails "$b" B
	export LAB=hosts LAB_WITH='' LAB_ENV=''
	[ -z "$opt_out" ] || export LAB_OUT=$opt_out
	for word in "${opt_env[@]}"; do
		export "${word?}"
		LAB_ENV+=" ${word%%=*}"
	done
	ulimit -l unlimited 2>/dev/null
	exec timeout -k 10 "$opt_time_limit" "$@"
}
