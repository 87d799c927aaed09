// SPDX-License-Identifier: Apache-2.0
// One scan of the write tracker over 1 GiB of shared memory of another process, by the share of pages that were
// written since the scan before.  The scan of the last round is part of the blackout.
#include <benchmark/benchmark.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>

extern "C" {
#include "kvm-glue/uffd_wp.h"
}

namespace {

constexpr uint64_t kBytes = UINT64_C(1) << 30;
constexpr uint64_t kPages = kBytes / LM_PAGE_SIZE;

// The "VM": maps the memory and writes to every n-th page when told.
class Child {
public:
	Child()
	{
		int pair[2];

		fd_ = memfd_create("micro-scan", MFD_CLOEXEC);
		if (fd_ < 0 || ftruncate(fd_, kBytes))
			return;
		ram_ = static_cast<volatile uint8_t *>(mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0));
		if (ram_ == MAP_FAILED || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
			return;
		socket_ = pair[0];
		pid_ = fork();
		if (!pid_)
			Serve(pair[1]);
		close(pair[1]);
		ok_ = pid_ > 0 && Dirty(100);
	}

	~Child()
	{
		if (pid_ > 0) {
			kill(pid_, SIGKILL);
			waitpid(pid_, nullptr, 0);
		}
		if (ram_ && ram_ != MAP_FAILED)
			munmap(const_cast<uint8_t *>(ram_), kBytes);
		close(socket_);
		close(fd_);
	}

	// Returns when it is done.
	bool Dirty(int percent)
	{
		uint8_t p = static_cast<uint8_t>(percent);

		return write(socket_, &p, 1) == 1 && read(socket_, &p, 1) == 1;
	}

	bool ok() const { return ok_; }
	pid_t pid() const { return pid_; }
	int fd() const { return fd_; }
	uint64_t address() const { return reinterpret_cast<uint64_t>(ram_); }

private:
	[[noreturn]] void Serve(int socket)
	{
		uint8_t percent;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		while (read(socket, &percent, 1) == 1) {
			for (uint64_t i = 0; i < kPages; i++)
				if (i * 61 % 100 < percent) // spread: no long runs below 100 %
					ram_[i * LM_PAGE_SIZE] = static_cast<uint8_t>(i | 1);
			if (write(socket, &percent, 1) != 1)
				break;
		}
		_exit(0);
	}

	volatile uint8_t *ram_ = nullptr;
	int fd_ = -1, socket_ = -1;
	pid_t pid_ = -1;
	bool ok_ = false;
};

// A tracker over all of the child's memory, started.
class Tracker {
public:
	explicit Tracker(const Child &child)
	{
		region_.size = kBytes;
		region_.page_size = LM_PAGE_SIZE;
		region_.vm_addr = child.address();
		region_.fd = child.fd();
		strcpy(region_.name, "ram");
		ram_.regions = &region_;
		ram_.nregions = 1;
		lm_bitmap_init(&written_, kPages);
		lm_bitmap_init(&absent_, kPages);
		ok_ = child.ok() && !lm_uffd_wp_new(child.pid(), &ram_, &tracker_, &err_) &&
		      !lm_dirty_start(tracker_, &err_);
	}

	~Tracker()
	{
		lm_dirty_close(tracker_);
		lm_bitmap_fini(&written_);
		lm_bitmap_fini(&absent_);
	}

	bool Scan(bool with_absent)
	{
		return !lm_dirty_collect(tracker_, 0, 0, kPages, &written_, with_absent ? &absent_ : nullptr, &err_);
	}

	void Clear()
	{
		lm_bitmap_clear_all(&written_);
		lm_bitmap_clear_all(&absent_);
	}

	uint64_t found() const { return lm_bitmap_count(&written_); }
	bool ok() const { return ok_; }
	const char *error() const { return err_.code ? err_.msg : "no child process"; }

private:
	struct lm_region region_ = {};
	struct lm_ram ram_ = {};
	struct lm_dirty *tracker_ = nullptr;
	struct lm_bitmap written_ = {}, absent_ = {};
	struct lm_error err_ = {};
	bool ok_ = false;
};

uint64_t Expected(int percent)
{
	uint64_t n = 0;

	for (uint64_t i = 0; i < kPages; i++)
		n += i * 61 % 100 < static_cast<uint64_t>(percent);
	return n;
}

void Scan(benchmark::State &state)
{
	static Child child; // one for all: 1 GiB takes a second to fill
	const int percent = static_cast<int>(state.range(0));
	const uint64_t expected = Expected(percent);
	Tracker tracker(child);
	double total = 0;

	if (!tracker.ok()) {
		state.SkipWithError(tracker.error());
		return;
	}
	tracker.Scan(false);
	for (auto _ : state) {
		tracker.Clear();
		if (!child.Dirty(percent)) {
			state.SkipWithError("the child process has ended");
			return;
		}
		auto begin = std::chrono::steady_clock::now();
		bool ok = tracker.Scan(state.range(1));
		std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;

		if (!ok || tracker.found() != expected) {
			state.SkipWithError(ok ? "the scan found another number of pages" : tracker.error());
			return;
		}
		state.SetIterationTime(took.count());
		total += took.count();
	}
	state.counters["ms_per_GiB"] = total * 1e3 / static_cast<double>(state.iterations());
	state.counters["dirty_pages"] = static_cast<double>(expected);
}

BENCHMARK(Scan)
	->ArgsProduct({{0, 1, 50, 100}, {0, 1}})
	->ArgNames({"dirty_percent", "absent"})
	->UseManualTime()
	->Unit(benchmark::kMillisecond);

}  // namespace

BENCHMARK_MAIN();
