# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# To be sourced: what the lab's own tests say and how they end.
failed=0
exec {never}<> <(:) # nothing comes from it: to wait for

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

# pause SECONDS: starts no process, which in the lab takes a tenth of a second of its only CPU
pause()
{
	read -r -t "$1" -u "$never" || :
}

# eventually SECONDS COMMAND...
eventually()
{
	local deadline=$((SECONDS + $1))
	shift

	until "$@"; do
		[ "$SECONDS" -lt "$deadline" ] || return 1
		pause 0.2
	done
}
