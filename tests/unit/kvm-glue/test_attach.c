/* SPDX-License-Identifier: Apache-2.0 */
/* Guests of a real QEMU that the engine accepts, and how it finds their RAM. */
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "kvm-glue/qemu_priv.h"
#include "attach_rig.h"
#include "../../lib/skip.h"

static void a_shared_file_is_accepted(void **state)
{
	struct lm_ram ram = { 0 };
	struct stat st;

	(void)state;
	rig_start_good(&q, "-smp", "3");
	assert_attached(attach(LM_SOURCE));
	assert_int_equal(vm->info.vcpus, 3);
	assert_true(vm->info.running);
	assert_memory_equal(vm->info.machine, "pc-q35-", 7);
	assert_int_equal(lm_vm_regions(vm, &ram, &err), 0);
	assert_int_equal(ram.nregions, 1);
	assert_string_equal(ram.regions[0].name, "ram0");
	assert_int_equal(ram.regions[0].size, 64 << 20);
	assert_int_equal(ram.regions[0].page_size, 4096);
	assert_int_equal(stat(q.ram, &st), 0);
	assert_int_equal(ram.regions[0].ino, st.st_ino);
	assert_false(ram.may_discard);
	assert_int_equal(lm_ram_map(&ram, false, &err), 0);
	lm_ram_fini(&ram);
}

static bool ram_is(const struct lm_ram *ram)
{
	bool same = true;

	assert_int_equal(lm_vm_ram_is(vm, ram, &same, &err), 0);
	return same;
}

static void memory_that_is_plugged_or_changed_is_seen(void **state)
{
	struct lm_ram ram = { 0 };
	struct lm_region *r, before;

	(void)state;
	rig_start_good(&q, "-S");
	assert_attached(attach(LM_SOURCE));
	assert_int_equal(lm_vm_regions(vm, &ram, &err), 0);
	assert_true(ram_is(&ram));
	r = &ram.regions[0];
	before = *r;
	r->size += LM_PAGE_SIZE;
	assert_false(ram_is(&ram));
	*r = before;
	r->vm_addr += LM_PAGE_SIZE;
	assert_false(ram_is(&ram));
	*r = before;
	r->ino++;
	assert_false(ram_is(&ram));
	*r = before;
	r->name[0] = 'x';
	assert_false(ram_is(&ram));
	*r = before;
	assert_int_equal(qemu_ask(qemu_of(vm), "object-add", json_tokener_parse("{\"qom-type\": \"memory-backend-ram\", "
				  "\"id\": \"more\", \"size\": 4194304}"), NULL, &err), 0);
	assert_false(ram_is(&ram));
	assert_int_equal(qemu_ask(qemu_of(vm), "object-del", lm_js_strings("id", "more", NULL), NULL, &err), 0);
	assert_true(ram_is(&ram));
	lm_ram_fini(&ram);
}

static void a_paused_guest_is_accepted(void **state)
{
	(void)state;
	rig_start_good(&q, "-S");
	assert_attached(attach(LM_SOURCE));
	assert_false(vm->info.running);
}

static void microvm_is_accepted(void **state)
{
	(void)state;
	rig_start(&q, "-M", "microvm,accel=tcg,memory-backend=ram0", "-m", RIG_MEM, "-object", RIG_RAM, "-S", NULL);
	assert_attached(attach(LM_SOURCE));
}

static void the_sandbox_is_no_obstacle(void **state)
{
	struct lm_ram ram = { 0 };
	struct lm_dirty *d = NULL;

	(void)state;
	rig_start_good(&q, "-S", "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
	assert_attached(attach(LM_SOURCE));
	assert_int_equal(lm_vm_regions(vm, &ram, &err), 0);
	if (lm_vm_tracker(vm, &ram, &d, &err) || lm_dirty_start(d, &err))
		fail_msg("%s", err.msg);
	lm_dirty_close(d);
	lm_ram_fini(&ram);
}

static void a_qemu_without_privileges_can_be_tracked(void **state)
{
	struct lm_ram ram = { 0 };
	struct lm_dirty *d = NULL;

	(void)state;
	if (geteuid())
		skip_because("needs root");
	/* the option has a new name since QEMU 9.0 and lost the old one in 10.0 */
	if (!rig_try(&q, RIG_GOOD, "-S", "-run-with", "user=nobody", NULL)) {
		rig_end(&q);
		rig_start_good(&q, "-S", "-runas", "nobody");
	}
	assert_attached(attach(LM_SOURCE));
	assert_int_equal(lm_vm_regions(vm, &ram, &err), 0);
	if (lm_vm_tracker(vm, &ram, &d, &err) || lm_dirty_start(d, &err))
		fail_msg("%s", err.msg);
	lm_dirty_close(d);
	lm_ram_fini(&ram);
}

static void an_unlinked_file_is_found(void **state)
{
	struct lm_ram ram = { 0 };

	(void)state;
	rig_start_good(&q, "-S");
	assert_attached(attach(LM_SOURCE)); /* QEMU talks only after it has made the file */
	assert_int_equal(unlink(q.ram), 0);
	lm_vm_detach(vm);
	assert_attached(attach(LM_SOURCE));
	assert_int_equal(lm_vm_regions(vm, &ram, &err), 0);
	lm_ram_fini(&ram);
}

static void a_file_made_in_a_folder_is_found(void **state)
{
	struct lm_ram ram = { 0 };

	(void)state;
	rig_start(&q, "-M", "q35,accel=tcg,memory-backend=ram0", "-m", RIG_MEM, "-object",
		  "memory-backend-file,id=ram0,size=" RIG_MEM ",mem-path=/dev/shm,share=on", "-S", NULL);
	assert_attached(attach(LM_SOURCE));
	assert_int_equal(lm_vm_regions(vm, &ram, &err), 0);
	lm_ram_fini(&ram);
}

static void a_chroot_is_no_obstacle(void **state)
{
	struct lm_ram ram = { 0 };

	(void)state;
	if (geteuid())
		skip_because("needs root");
	if (!rig_try(&q, RIG_GOOD, "-S", "-run-with", "chroot=/usr", NULL)) {
		rig_end(&q);
		rig_start_good(&q, "-S", "-chroot", "/usr");
	}
	assert_attached(attach(LM_SOURCE));
	assert_int_equal(lm_vm_regions(vm, &ram, &err), 0);
	lm_ram_fini(&ram);
}

static void numa_nodes_are_regions_in_the_order_of_their_names(void **state)
{
	struct lm_ram ram = { 0 };

	(void)state;
	rig_start(&q, "-M", "q35,accel=tcg", "-m", "128M", "-smp", "2", "-S",
		  "-object", "memory-backend-file,id=zz,size=64M,mem-path=/dev/shm,share=on",
		  "-object", "memory-backend-file,id=aa,size=64M,mem-path=/dev/shm,share=on",
		  "-numa", "node,memdev=zz", "-numa", "node,memdev=aa", NULL);
	assert_attached(attach(LM_SOURCE));
	assert_int_equal(lm_vm_regions(vm, &ram, &err), 0);
	assert_int_equal(ram.nregions, 2);
	assert_string_equal(ram.regions[0].name, "aa");
	assert_string_equal(ram.regions[1].name, "zz");
	assert_int_not_equal(ram.regions[0].vm_addr, ram.regions[1].vm_addr);
	lm_ram_fini(&ram);
}

static void a_balloon_may_discard(void **state)
{
	struct lm_ram ram = { 0 };

	(void)state;
	rig_start_good(&q, "-S", "-device", "virtio-balloon-pci");
	assert_attached(attach(LM_SOURCE));
	assert_int_equal(lm_vm_regions(vm, &ram, &err), 0);
	assert_true(ram.may_discard);
	lm_ram_fini(&ram);
}

int main(void)
{
#define T(name) cmocka_unit_test_teardown(name, attach_teardown)
	const struct CMUnitTest tests[] = {
		T(a_shared_file_is_accepted),
		T(memory_that_is_plugged_or_changed_is_seen),
		T(a_paused_guest_is_accepted),
		T(microvm_is_accepted),
		T(the_sandbox_is_no_obstacle),
		T(a_qemu_without_privileges_can_be_tracked),
		T(an_unlinked_file_is_found),
		T(a_file_made_in_a_folder_is_found),
		T(a_chroot_is_no_obstacle),
		T(numa_nodes_are_regions_in_the_order_of_their_names),
		T(a_balloon_may_discard),
	};

	if (!rig_available())
		return 77;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
