# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# shellcheck disable=SC2054  # QEMU's words have commas
# shellcheck disable=SC2154  # opt_*, lab, here: from run
#
# To be sourced by run: starts the VM, follows it, ends it.
#
# A run has a folder, shared with the VM as /run/lab: setup (shell variables), command and
# environment (words that end with NUL).  Three virtio ports lead out: the first is the
# control channel, on which the VM says "up" (the root file system is there), "begin" (the
# command starts) and "status N"; the others are the command's output and errors.  The
# control channel is QEMU's standard output, so that it ends when QEMU does.

vm_tries=3          # a boot that does not come up is tried again
vm_boot_limit=40    # seconds until the root file system is there; 2 to 3 as a rule
vm_off_limit=10     # seconds to power off

vm_run='' vm_pid='' vm_control='' vm_relays=()

# quote WORD: for any POSIX shell
vm_quote()
{
	printf "'%s'" "${1//\'/\'\\\'\'}"
}

# Makes the run's folder, and removes those whose run was killed: nobody locks them.
vm_make_folder()
{
	local old

	exec 9>"$lab/lock"
	flock 9
	for old in "$lab"/run.*/; do
		(exec 7<"$old" && flock -n 7 && rm -rf "$old") 2>/dev/null
	done
	vm_run=$(mktemp -d "$lab/run.XXXXXX") || fail "cannot write to $lab"
	exec 7<"$vm_run"
	flock 7
	exec 9>&-
}

# What the VM is to know.  $opt_* are run's options.
vm_describe()
{
	local rows=24 columns=80

	[ -z "$opt_shell" ] || read -r rows columns < <(stty size)
	printf '%s=%s\n' lab "$(vm_quote "$lab")" lab_inside "$(vm_quote "$here/inside")" \
		lab_cwd "$(vm_quote "$PWD")" lab_out "$(vm_quote "$opt_out")" lab_with "'${opt_with//,/ }'" \
		lab_cpus "$opt_cpus" lab_hugepages "$opt_hugepages" lab_shell "'$opt_shell'" \
		lab_rows "$rows" lab_columns "$columns" >"$vm_run/setup"
	[ $# = 0 ] || printf '%s\0' "$@" >"$vm_run/command"
	env -0 "${opt_env[@]}" >"$vm_run/environment"
	mkdir "$vm_run/out"
	mkfifo "$vm_run/stdout" "$vm_run/stderr"
}

# share TAG FOLDER WORD...: the words for QEMU
vm_share()
{
	local tag=$1 folder=${2//,/,,}
	shift 2

	vm_words+=(-fsdev "local,id=$tag,path=$folder,security_model=none,multidevs=remap$*"
		-device "virtio-9p-pci,fsdev=$tag,mount_tag=$tag")
}

# port NUMBER NAME CHARDEV-WORDS
vm_port()
{
	vm_words+=(-chardev "$3,id=$2" -device "virtserialport,nr=$1,name=lab.$2,chardev=$2")
}

# The command line of the kernel: all that is not needed costs time under emulation.
vm_kernel_words()
{
	local words=(console=ttyS0 panic=-1 quiet nokaslr mitigations=off apparmor=0 audit=0 tsc=reliable
		no_timer_check 8250.nr_uarts=1 i8042.noaux i8042.nokbd cryptomgr.notests
		rcupdate.rcu_expedited=1 random.trust_cpu=on no5lvl nosmap cgroup_disable=memory psi=0
		init_on_alloc=0 hardened_usercopy=off randomize_kstack_offset=off)

	# With both CPUs from the start the kernel now and then dies in an int3.
	[ "$opt_cpus" = 1 ] || words+=(maxcpus=1)
	# With KVM the emulated CPU now and then misses the interrupt of its timer.  Of one that is set anew
	# each time there is never another, and the VM is idle for ever; one that goes on makes up for it.
	# Without KVM it saves a quarter of the emulator's work, where time need not be finer than 4 ms.
	[[ ${LAB_TIMERS-} != coarse && ,$opt_with, != *,kvm,* ]] || words+=(nohz=off highres=off)
	echo "${words[*]}"
}

vm_numa_words()
{
	local half=$((opt_memory / 2)) node cpu

	for node in 0 1; do
		cpu=
		[ "$node" -ge "$opt_cpus" ] || cpu=,cpus=$node
		vm_words+=(-object "memory-backend-ram,id=ram$node,size=${half}M"
			-numa "node,nodeid=$node,memdev=ram$node$cpu")
	done
}

# Sets vm_words: QEMU's command line
vm_command_line()
{
	local threads=multi

	# Without erms, fsrm: `rep movsb`, which is emulated byte by byte, is not what copies memory then.
	# KVM patches the kernel's code while it runs; two CPUs that are emulated in parallel
	# now and then take that for a breakpoint and die (so they may at boot, see above).
	[[ $opt_cpus,$opt_with, != 2,*kvm,* ]] || threads=single
	vm_words=(qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot
		-M q35 -accel "tcg,thread=$threads,tb-size=256" -cpu max,erms=off,fsrm=off -smp "$opt_cpus" -m "$opt_memory"
		-kernel "$lab/vm/vmlinux" -initrd "$lab/vm/initramfs.cpio" -append "$(vm_kernel_words)")
	[[ ,$opt_with, != *,numa,* ]] || vm_numa_words
	vm_share host / ,readonly=on
	vm_share lab "$lab/vm/root" ,readonly=on
	vm_share run "$vm_run"
	[ -z "$opt_out" ] || vm_share out "$opt_out"
	vm_words+=(-device virtio-serial-pci)
	if [ -n "$opt_shell" ]; then
		vm_port 1 control "file,path=${vm_run//,/,,}/control"
		vm_port 2 out "null"
		vm_words+=(-serial "mon:stdio")
	else
		vm_port 1 control "file,path=/dev/fd/1"
		vm_port 2 out "file,path=${vm_run//,/,,}/stdout"
		vm_words+=(-serial "file:$vm_run/console")
	fi
	vm_port 3 err "file,path=${vm_run//,/,,}/stderr"
}

# It ends when we end, however that may be.
vm_start()
{
	cat <"$vm_run/stdout" &
	vm_relays=($!)
	cat <"$vm_run/stderr" >&2 &
	vm_relays+=($!)
	: >"$vm_run/console"
	exec {vm_control}< <(exec setpriv --pdeathsig KILL "${vm_words[@]}" </dev/null 2>"$vm_run/qemu.log")
	vm_pid=$!
}

# Ends it if it still runs, by its process id, which is ours until it is waited for.
vm_end()
{
	local fifo

	[ -n "$vm_pid" ] || return 0
	kill -KILL "$vm_pid" 2>/dev/null
	wait "$vm_pid" 2>/dev/null
	vm_pid=
	exec {vm_control}<&-
	# A relay that QEMU never came to waits in open().
	for fifo in stdout stderr; do
		exec 8<>"$vm_run/$fifo" 8>&-
	done
	wait "${vm_relays[@]}"
}

# hear SECONDS: the next word of the VM into vm_word: up, begin, status, "late" or "gone"
vm_hear()
{
	local status

	read -r -t "$1" -u "$vm_control" vm_word vm_status && return
	status=$?
	vm_word=gone
	[ "$status" -le 128 ] || vm_word=late
}

vm_console()
{
	{
		echo "-- the VM's console:"
		tail -n 40 "$vm_run/console" | tr -d '\r'
		cat "$vm_run/qemu.log"
		echo "--"
	} >&2
}

# Comes up, if need be after several tries
vm_boot()
{
	local try

	for ((try = 1; try <= vm_tries; try++)); do
		vm_start
		vm_hear "$vm_boot_limit"
		[ "$vm_word" != up ] || return 0
		vm_end
		echo "tools/lab: the VM did not come up ($vm_word), try $try of $vm_tries" >&2
	done
	vm_console
	return 1
}

# Follows it until the command's status is there; sets vm_result
vm_follow()
{
	local deadline=$((SECONDS + opt_time_limit)) left

	vm_result=125
	while :; do
		left=$((deadline - SECONDS))
		if [ "$left" -le 0 ]; then vm_word=late; else vm_hear "$left"; fi
		case $vm_word in
		begin) ;;
		status)
			vm_result=$vm_status
			vm_hear "$vm_off_limit"
			return
			;;
		late)
			echo "tools/lab: ended after $opt_time_limit s (--time-limit)" >&2
			vm_result=124
			return
			;;
		*)
			echo "tools/lab: the VM died" >&2
			vm_console
			return
			;;
		esac
	done
}

vm_finish()
{
	vm_end
	if [ -n "$opt_console" ] && [ -e "$vm_run/console" ]; then
		cp "$vm_run/console" "$opt_console"
	fi
	rm -rf "$vm_run"
}

# run COMMAND...: returns the command's status
vm_run_command()
{
	vm_make_folder
	trap vm_finish EXIT
	trap 'exit 130' INT
	trap 'exit 129' HUP
	trap 'exit 143' TERM
	vm_describe "$@"
	vm_command_line
	vm_boot || return 125
	vm_follow
	vm_end
	return "$vm_result"
}

# The terminal is the VM's serial line.  QEMU's monitor is at Ctrl-a c, its end at Ctrl-a x.
vm_run_shell()
{
	vm_make_folder
	trap vm_finish EXIT
	vm_describe
	vm_command_line
	cat <"$vm_run/stderr" >&2 &
	setpriv --pdeathsig KILL "${vm_words[@]}"
	exec 8<>"$vm_run/stderr" 8>&-
	vm_status=$(sed -n 's/^status //p' "$vm_run/control")
	return "${vm_status:-125}"
}
