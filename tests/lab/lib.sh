# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# To be sourced: what the lab's own tests say and how they end.
failed=0

finish()
{
	exit "$failed"
}

# is NAME EXPECTED ACTUAL
is()
{
	if [ "$2" = "$3" ]; then
		echo "ok: $1"
	else
		printf 'FAILED: %s\n  expected: %q\n  is:       %q\n' "$1" "$2" "$3"
		failed=1
	fi
}

# succeeds NAME COMMAND...: what it said is shown when it fails
succeeds()
{
	local name=$1 said status
	shift

	said=$("$@" 2>&1)
	status=$?
	is "$name" 0 "$status"
	[ "$status" = 0 ] || printf '%s\n' "$said"
}

# eventually SECONDS COMMAND...
eventually()
{
	local deadline=$((SECONDS + $1))
	shift

	until "$@"; do
		[ "$SECONDS" -lt "$deadline" ] || return 1
		sleep 0.1
	done
}
