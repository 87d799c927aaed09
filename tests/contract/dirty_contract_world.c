/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include "dirty_contract_world.h"

void order(struct world *w, enum order o, uint64_t first, uint64_t n, uint64_t step)
{
	struct command c = { o, first, n, step };
	char ok;

	assert_int_equal(write(w->sock, &c, sizeof(c)), sizeof(c));
	assert_int_equal(read(w->sock, &ok, 1), 1);
}

static void child_start(struct world *w)
{
	int sock[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sock), 0);
	w->pid = fork();
	assert_true(w->pid >= 0);
	if (!w->pid) {
		close(sock[0]);
		child_main(sock[1], w->region.host, w->region.fd);
	}
	close(sock[1]);
	w->sock = sock[0];
}

void child_end(struct world *w)
{
	if (w->pid <= 0)
		return;
	kill(w->pid, SIGKILL);
	waitpid(w->pid, NULL, 0);
	w->pid = 0;
}

int setup(void **state)
{
	const struct kind *k = *state;
	struct world *w = calloc(1, sizeof(*w));
	struct lm_region *r = &w->region;

	w->kind = k;
	r->fd = k->memory->file();
	if (r->fd < 0) {
		print_message("no %s on this host: %s\n", k->memory->name, strerror(errno));
		free(w);
		*state = NULL;
		return 0;
	}
	strcpy(r->name, "ram0");
	r->size = RAM_SIZE;
	r->page_size = k->memory->page_size;
	assert_int_equal(ftruncate(r->fd, (off_t)r->size), 0);
	r->host = mmap(NULL, r->size, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
	assert_ptr_not_equal(r->host, MAP_FAILED);
	r->vm_addr = (uintptr_t)r->host; /* the child has it at the same place */
	w->ram = (struct lm_ram){ r, 1, true };
	assert_int_equal(lm_bitmap_init(&w->written, NPAGES), 0);
	assert_int_equal(lm_bitmap_init(&w->absent, NPAGES), 0);
	child_start(w);
	*state = w;
	return 0;
}

int teardown(void **state)
{
	struct world *w = *state;

	if (!w)
		return 0;
	lm_dirty_close(w->dirty);
	child_end(w);
	close(w->sock);
	munmap(w->region.host, w->region.size);
	close(w->region.fd);
	lm_bitmap_fini(&w->written);
	lm_bitmap_fini(&w->absent);
	free(w);
	return 0;
}

struct world *world_of(void **state)
{
	if (!*state)
		skip();
	return *state;
}

void ok(struct world *w, int r)
{
	if (r)
		fail_msg("%d: %s", r, w->err.msg);
}

void tracker_start(struct world *w)
{
	ok(w, w->kind->tracker->make(w->pid, &w->ram, &w->dirty, &w->err));
	ok(w, lm_dirty_start(w->dirty, &w->err));
}

void collect(struct world *w)
{
	lm_bitmap_clear_all(&w->written);
	lm_bitmap_clear_all(&w->absent);
	ok(w, lm_dirty_collect(w->dirty, 0, 0, NPAGES, &w->written, &w->absent, &w->err));
}

void assert_written(struct world *w, uint64_t first, uint64_t n, uint64_t step)
{
	for (uint64_t i = 0; i < n; i++)
		if (!lm_bitmap_test(&w->written, first + i * step))
			fail_msg("page %llu was written and is not reported",
				 (unsigned long long)(first + i * step));
}

void assert_count(struct world *w, uint64_t nwritten)
{
	assert_int_equal(lm_bitmap_count(&w->written), nwritten * (w->region.page_size >> LM_PAGE_SHIFT));
}

uint64_t count_discarded(struct world *w, uint64_t first, uint64_t n)
{
	struct lm_bitmap existing = { 0 };
	uint64_t found = 0;

	assert_int_equal(lm_bitmap_init(&existing, NPAGES), 0);
	ok(w, lm_region_existing(&w->region, 0, NPAGES, &existing, &w->err));
	for (uint64_t i = first; i < first + n; i++)
		found += lm_bitmap_test(&w->absent, i) && !lm_bitmap_test(&existing, i);
	lm_bitmap_fini(&existing);
	return found;
}
