# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# To be sourced: Debian packages of any suite, downloaded and unpacked, never installed.
# Lists, cache and settings lie in a folder of their own; the machine's are not touched.
# Signatures are checked with the machine's keys.

# private_apt_mirror: the Debian mirror that this machine uses
private_apt_mirror()
{
	local uri

	uri=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | grep -v '^ *#' |
		grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1)
	echo "${uri%% *}"
}

# private_apt DIR TOOL WORD...: TOOL is apt-get or apt-cache
private_apt()
{
	local dir=$1 tool=$2
	shift 2

	"$tool" -q -o Dir::Etc::sourcelist="$dir/sources.list" -o Dir::Etc::sourceparts=- \
		-o Dir::State="$dir/state" -o Dir::State::lists="$dir/lists" \
		-o Dir::State::status="$dir/status" -o Dir::Cache="$dir/cache" \
		-o APT::Get::List-Cleanup=0 -o APT::Sandbox::User="" "$@"
}

# private_apt_lists DIR SUITE...: gets the lists.  Nothing counts as installed, so that
# what is asked for comes with all of its libraries and does not depend on the machine.
private_apt_lists()
{
	local dir=$1 uri suite
	shift

	uri=$(private_apt_mirror)
	if [ -z "$uri" ]; then
		echo "no Debian mirror in the machine's apt sources" >&2
		return 1
	fi
	mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial" "$dir/state"
	: >"$dir/status"
	for suite in "$@"; do
		echo "deb $uri $suite main"
	done >"$dir/sources.list"
	private_apt "$dir" apt-get --error-on=any update
}

# private_apt_unpack FOLDER DEB...: FOLDER gets the layout of a merged /usr, so that
# it can lie over or under a root file system.
private_apt_unpack()
{
	local folder=$1 deb name
	shift

	for name in bin sbin lib lib64; do
		mkdir -p "$folder/usr/$name"
		[ -e "$folder/$name" ] || ln -s "usr/$name" "$folder/$name"
	done
	for deb in "$@"; do
		dpkg-deb --fsys-tarfile "$deb" |
			tar -C "$folder" --keep-directory-symlink --no-same-owner -xf - || return
	done
}
