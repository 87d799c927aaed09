/* SPDX-License-Identifier: Apache-2.0 */
/* A VM with two memory backends and a pager over them, once per kind of memory. */
#ifndef PAGER_RIG_H
#define PAGER_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdatomic.h>
#include <pthread.h>
#include "engine/base/clock.h"
#include "pager_vm.h"
#include "kvm-glue/uffd_pager.h"

#define REGION_SIZE (UINT64_C(8) << 20)
#define HUGEPAGES 8 /* that two regions need */
#define SERVERS 2
#define SOON 10000 /* ms: for what happens at once, on a busy machine */
#define NEVER 50   /* ms: for what does not happen */

struct memory {
	const char *name;
	int (*make)(void);
	uint64_t page_size;
};
extern const struct memory memory_tmpfs, memory_thp, memory_hugetlb;

struct world {
	const struct memory *memory;
	struct lm_region regions[2];
	struct lm_ram ram;
	uint64_t nunits; /* pages of the memory's own size per region */
	struct vm vm;
	struct lm_pager *pager;
	struct lm_error err;

	pthread_t servers[SERVERS];
	unsigned nservers;
	_Atomic bool serving;
	_Atomic unsigned served;
	_Atomic int server_failed;
};

int world_setup(void **state); /* *state: the struct memory; then the struct world, NULL when there is no such memory */
int world_teardown(void **state);
struct world *world_of(void **state); /* skips where there is none */

/* Fails the test with the world's error. */
void ok(struct world *w, int r);
#define assert_err(w, call, want_code, want_scope, want_text)                                \
	do {                                                                                 \
		lm_err_clear(&(w)->err);                                                     \
		assert_int_equal((call), (want_code));                                       \
		assert_int_equal((w)->err.code, (want_code));                                \
		assert_int_equal((w)->err.scope, (want_scope));                              \
		if (!strstr((w)->err.msg, (want_text)))                                      \
			fail_msg("\"%s\" does not say \"%s\"", (w)->err.msg, (want_text));   \
	} while (0)

/* Places are counted in units: pages of the memory's own size. */
uint64_t unit_addr(const struct world *w, unsigned region, uint64_t unit);
/* Every word becomes what pattern() says. */
void fill(struct world *w, unsigned region, uint64_t unit, uint64_t n);
void arm(struct world *w); /* makes the pager, too */
void place(struct world *w, unsigned region, uint64_t unit, uint64_t n);
/* Waits for one fault. */
struct lm_page_fault fault_wait(struct world *w);
void assert_no_fault(struct world *w);
/* Threads that place every page that is asked for, until the end of the test. */
void serve(struct world *w, unsigned nservers);
void serve_stop(struct world *w);

void tell(struct world *w, unsigned thread, enum touch what, unsigned region, uint64_t unit, uint64_t value);
/* The thread has done what it was told; what came of it. */
uint64_t done(struct world *w, unsigned thread);
void assert_waits(struct world *w, unsigned thread);

/* A file on a tmpfs with a mount option that is mounted nowhere and goes with the file; -1 with errno. */
int tmpfs_file(const char *option, const char *value);
void hugepages_add(long n); /* to those that the host reserves, where that is allowed */
unsigned count_fds(pid_t pid);
/* How much shared memory it has mapped by transparent huge pages. */
uint64_t huge_mapped_kib(pid_t pid);
/* Whether any mapping of the process is registered with a userfaultfd. */
bool is_watched(pid_t pid);

/* In run(), whose argument is called m. */
#define PAGER_TEST(f) { #f, f, world_setup, world_teardown, (void *)m }
/* Runs the tests once per kind of memory; argv[1]: a filter.  Returns how many failed. */
int pager_main(int argc, char **argv, int (*run)(const struct memory *m));

#endif
