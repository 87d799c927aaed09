// SPDX-License-Identifier: Apache-2.0
// The pager of post-copy over 1 GiB of shared memory of another process: how long a touch waits for a page that is
// there, and what arming and placing cost.
#include <benchmark/benchmark.h>

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

extern "C" {
#include "kvm-glue/uffd_pager.h"
}

namespace {

constexpr uint64_t kBytes = UINT64_C(1) << 30;
constexpr uint64_t kPages = kBytes / LM_PAGE_SIZE;

double Now()
{
	timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

// The "VM": maps the memory and touches every step-th page when told; answers with the time of each touch.
class World {
public:
	explicit World(bool filled)
	{
		int pair[2];

		strcpy(region_.name, "ram0");
		region_.fd = memfd_create("micro-pager", MFD_CLOEXEC);
		region_.size = kBytes;
		region_.page_size = LM_PAGE_SIZE;
		if (region_.fd < 0 || ftruncate(region_.fd, kBytes) ||
		    (filled && fallocate(region_.fd, 0, 0, kBytes)))
			return;
		void *p = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, region_.fd, 0);
		if (p == MAP_FAILED || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
			return;
		region_.host = static_cast<uint8_t *>(p);
		region_.vm_addr = reinterpret_cast<uint64_t>(p);
		if (filled)
			memset(p, 1, kBytes);
		ram_.regions = &region_;
		ram_.nregions = 1;
		socket_ = pair[0];
		pid_ = fork();
		if (!pid_)
			Serve(pair[1]);
		close(pair[1]);
		ok_ = pid_ > 0;
	}

	~World()
	{
		lm_pager_close(pager_);
		if (pid_ > 0) {
			kill(pid_, SIGKILL);
			waitpid(pid_, nullptr, 0);
		}
		if (region_.host)
			munmap(region_.host, kBytes);
		close(socket_);
		close(region_.fd);
	}

	World(const World &) = delete;
	World &operator=(const World &) = delete;

	// Every step-th page, one time per touch; returns at once, Touched() waits.
	void Touch(uint64_t step) { ok_ = ok_ && write(socket_, &step, sizeof(step)) == sizeof(step); }

	std::vector<float> Touched(uint64_t step)
	{
		std::vector<float> us(kPages / step);
		char *at = reinterpret_cast<char *>(us.data());
		size_t left = us.size() * sizeof(float);

		while (left) {
			ssize_t n = read(socket_, at, left);

			if (n <= 0) {
				ok_ = false;
				break;
			}
			at += n;
			left -= static_cast<size_t>(n);
		}
		return us;
	}

	bool Arm()
	{
		return ok_ && !lm_uffd_pager_new(pid_, &ram_, &pager_, &err_) && !lm_pager_arm(pager_, &err_);
	}

	bool Place(uint64_t first, uint64_t n) { return !lm_pager_place(pager_, 0, first, n, &err_); }

	// Places every page that is asked for until n are.
	bool ServeFaults(uint64_t n)
	{
		pollfd p = { pager_->fd, POLLIN, 0 };
		lm_page_fault faults[64];

		while (n) {
			int got = poll(&p, 1, 5000) == 1 ? lm_pager_faults(pager_, faults, 64, &err_) : -1;

			if (got < 0)
				return false;
			for (int i = 0; i < got; i++)
				if (!Place(faults[i].page, 1))
					return false;
			n -= static_cast<uint64_t>(got);
		}
		return true;
	}

	bool Finish() { return !lm_pager_finish(pager_, &err_); }

	void Close()
	{
		lm_pager_close(pager_);
		pager_ = nullptr;
	}

	bool ok() const { return ok_; }
	const char *error() const { return err_.msg[0] ? err_.msg : "cannot set up"; }

private:
	[[noreturn]] void Serve(int socket)
	{
		uint64_t step;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		while (read(socket, &step, sizeof(step)) == sizeof(step)) {
			std::vector<float> us(kPages / step);

			for (uint64_t i = 0; i < us.size(); i++) {
				double t = Now();

				(void)*static_cast<volatile uint8_t *>(region_.host + i * step * LM_PAGE_SIZE);
				us[i] = static_cast<float>((Now() - t) * 1e6);
			}
			const char *at = reinterpret_cast<const char *>(us.data());
			for (size_t left = us.size() * sizeof(float); left;) {
				ssize_t n = write(socket, at, left);

				if (n <= 0)
					_exit(1);
				at += n;
				left -= static_cast<size_t>(n);
			}
		}
		_exit(0);
	}

	lm_region region_ = {};
	lm_ram ram_ = {};
	lm_pager *pager_ = nullptr;
	lm_error err_ = {};
	int socket_ = -1;
	pid_t pid_ = -1;
	bool ok_ = false;
};

// Pages that are there, touched one after the other: touch, wake of the server, placing, wake of the VM.
void BM_Fault(benchmark::State &state)
{
	constexpr uint64_t kStep = 13;
	std::vector<float> all;

	for (auto _ : state) {
		World w(true);

		if (!w.Arm()) {
			state.SkipWithError(w.error());
			return;
		}
		w.Touch(kStep);
		if (!w.ServeFaults(kPages / kStep)) {
			state.SkipWithError(w.error());
			return;
		}
		std::vector<float> us = w.Touched(kStep);
		all.insert(all.end(), us.begin(), us.end());
	}
	std::sort(all.begin(), all.end());
	state.counters["median_us"] = static_cast<double>(all[all.size() / 2]);
	state.counters["p99_us"] = static_cast<double>(all[all.size() * 99 / 100]);
	state.counters["max_us"] = static_cast<double>(all.back());
}

enum What { kArmMapped, kArmEmpty, kPlace, kPlaceSingly, kPlaceAgain, kPlaceHoles, kFinish };

bool PlaceAll(World *w, uint64_t chunk)
{
	for (uint64_t at = 0; at < kPages; at += chunk)
		if (!w->Place(at, chunk))
			return false;
	return true;
}

// All in ms per GiB.
void BM_Gib(benchmark::State &state)
{
	What what = static_cast<What>(state.range(0));

	for (auto _ : state) {
		World w(what != kPlaceHoles);
		double t;
		bool ok = w.ok();

		if (what == kArmMapped) {
			w.Touch(1);
			w.Touched(1);
		}
		t = Now();
		ok = ok && w.Arm();
		if (what > kArmEmpty) {
			if (what == kPlaceAgain || what == kFinish)
				ok = ok && PlaceAll(&w, kPages);
			t = Now();
			ok = ok && (what == kFinish ? w.Finish() : PlaceAll(&w, what == kPlaceSingly ? 1 : kPages));
		}
		state.SetIterationTime(Now() - t);
		if (!ok) {
			state.SkipWithError(w.error());
			return;
		}
	}
}

void Gib(const char *name, What what)
{
	benchmark::RegisterBenchmark(name, BM_Gib)
		->Arg(what)->Iterations(5)->UseManualTime()->Unit(benchmark::kMillisecond);
}

} // namespace

int main(int argc, char **argv)
{
	benchmark::RegisterBenchmark("fault", BM_Fault)->Iterations(3)->Unit(benchmark::kMillisecond);
	Gib("arm, all mapped", kArmMapped);
	Gib("arm, nothing mapped", kArmEmpty);
	Gib("place", kPlace);
	Gib("place page by page", kPlaceSingly);
	Gib("place what is placed", kPlaceAgain);
	Gib("place holes", kPlaceHoles);
	Gib("finish", kFinish);
	benchmark::Initialize(&argc, argv);
	if (benchmark::ReportUnrecognizedArguments(argc, argv))
		return 1;
	benchmark::RunSpecifiedBenchmarks();
	benchmark::Shutdown();
	return 0;
}
