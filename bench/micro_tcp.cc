// SPDX-License-Identifier: Apache-2.0
//
// One TCP lane over loopback, source and destination in one process, each in its own
// thread: bytes per second, and CPU seconds per GiB on either side.
//
// Names: run length / how pages are sent / how they are placed / state of the destination
//	copy, splice      copied into the socket; by reference (vmsplice)
//	file, map         what the transport does by itself; always into the mapping
//	fresh, again      pages the file does not have yet; pages placed before
//
// Runs of 4 KiB are every other page, longer ones lie one after the other.
#include <benchmark/benchmark.h>
#include <arpa/inet.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <thread>
#include <vector>
extern "C" {
#include "engine/tcp/tcp_transport.h"
#include "engine/base/clock.h"
#include "engine/transport/transport.h"
}

namespace {

constexpr uint64_t kBytes = uint64_t{256} << 20; // sent per iteration

struct Case {
	uint64_t run;
	const char *send, *place;
	bool fresh;
};

double thread_cpu_s()
{
	timespec t;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

// Memory that is there in full; the source's holds something.
lm_region make_region(uint64_t size, int fill)
{
	lm_region r = {};
	r.fd = memfd_create("bench", MFD_CLOEXEC);
	if (r.fd < 0 || ftruncate(r.fd, static_cast<off_t>(size)))
		abort();
	void *p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, r.fd, 0);
	if (p == MAP_FAILED)
		abort();
	memset(p, fill, size);
	r.host = static_cast<uint8_t *>(p);
	r.size = size;
	r.page_size = LM_PAGE_SIZE;
	return r;
}

class Lane {
public:
	explicit Lane(uint64_t size) : src_(make_region(size, 0x5a)), dst_(make_region(size, 1))
	{
		connect();
		pump_ = std::thread([this] { pump(); });
	}

	~Lane()
	{
		stop_ = true;
		pump_.join();
		lm_transport_free(source_);
		lm_transport_free(dest_);
		for (lm_region *r : {&src_, &dst_}) {
			munmap(r->host, r->size);
			close(r->fd);
		}
	}

	Lane(const Lane &) = delete;
	Lane &operator=(const Lane &) = delete;

	// 0 when all of it is placed, or an error.
	int send(uint64_t run_len)
	{
		uint64_t step = run_len == LM_PAGE_SIZE ? 2 * run_len : run_len, at = 0;
		while (at < src_.size) {
			lm_run runs[LM_WRITE_MAX];
			unsigned n = 0;
			for (uint64_t bytes = 0; at < src_.size && n < LM_WRITE_MAX && bytes < (1 << 20); at += step) {
				runs[n++] = {0, LM_RUN_DATA, at, run_len};
				bytes += run_len;
			}
			for (unsigned done = 0; done < n;) {
				int r = lm_transport_write(source_, 0, runs + done, n - done, &err_);
				if (r == -EAGAIN)
					r = poll_source();
				if (r < 0)
					return r;
				done += static_cast<unsigned>(r);
			}
		}
		return flush();
	}

	// The destination has no pages, or all of them and both ends know.
	void forget()
	{
		fallocate(dst_.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(dst_.size));
		lm_run all = {0, LM_RUN_ZERO, 0, dst_.size};
		lm_transport_write(source_, 0, &all, 1, &err_);
		flush();
	}

	double dest_cpu_s()
	{
		clockid_t clock;
		timespec t;
		pthread_getcpuclockid(pump_.native_handle(), &clock);
		clock_gettime(clock, &t);
		return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
	}

private:
	void connect()
	{
		sockaddr_in a = {};
		socklen_t len = sizeof(a);
		lm_transport_params p = {};
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
		a.sin_family = AF_INET;
		a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		if (bind(fd, reinterpret_cast<sockaddr *>(&a), len) || listen(fd, 1) ||
		    getsockname(fd, reinterpret_cast<sockaddr *>(&a), &len))
			abort();
		std::string peer = "127.0.0.1:" + std::to_string(ntohs(a.sin_port));
		p.nlanes = 1;
		p.listen_fd = fd;
		p.peer = peer.c_str();
		p.cancel_fd = -1;
		p.deadline_ns = lm_now_ns() + 5 * LM_NS_PER_S;
		source_ = lm_transport_tcp_new();
		dest_ = lm_transport_tcp_new();
		std::thread other([&] { open(dest_, p, LM_DEST, dst_); });
		open(source_, p, LM_SOURCE, src_);
		other.join();
		close(fd);
	}

	static void open(lm_transport *t, lm_transport_params p, lm_side side, const lm_region &r)
	{
		lm_error err;
		lm_key key;
		p.side = side;
		if (lm_transport_open(t, &p, &err) || lm_transport_region_add(t, &r, &key, &err)) {
			fprintf(stderr, "%s\n", err.msg);
			abort();
		}
	}

	void pump()
	{
		lm_poll_result res;
		lm_error err;
		while (!stop_ && !lm_transport_poll(dest_, 0, 20, &res, &err))
			;
	}

	int poll_source()
	{
		lm_poll_result res;
		int r = lm_transport_poll(source_, 0, 100, &res, &err_);
		flushed_ = res.flushed;
		return r;
	}

	int flush()
	{
		int r;
		seq_++;
		while ((r = lm_transport_flush(source_, 0, seq_, &err_)) == -EAGAIN)
			if ((r = poll_source()))
				return r;
		while (!r && flushed_ < seq_)
			r = poll_source();
		return r;
	}

	lm_region src_, dst_;
	lm_transport *source_ = nullptr, *dest_ = nullptr;
	lm_error err_ = {};
	uint64_t seq_ = 0, flushed_ = 0;
	std::atomic<bool> stop_{false};
	std::thread pump_;
};

void run(benchmark::State &state, const Case &c)
{
	setenv("LM_TCP_SEND", c.send, 1);
	setenv("LM_TCP_PLACE", c.place, 1);
	Lane lane(kBytes * (c.run == LM_PAGE_SIZE ? 2 : 1));
	double src = 0, dst = 0;

	lane.send(c.run); // twice: every page is known and mapped, the connection at its full window
	lane.send(c.run);
	for (auto _ : state) {
		if (c.fresh) {
			state.PauseTiming();
			lane.forget();
			state.ResumeTiming();
		}
		double src_before = thread_cpu_s(), dst_before = lane.dest_cpu_s();
		if (lane.send(c.run))
			state.SkipWithError("the lane broke");
		src += thread_cpu_s() - src_before;
		dst += lane.dest_cpu_s() - dst_before;
	}
	double gib = static_cast<double>(state.iterations()) * kBytes / (1 << 30);
	state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * kBytes));
	state.counters["src_cpu_s_per_GiB"] = src / gib;
	state.counters["dst_cpu_s_per_GiB"] = dst / gib;
}

} // namespace

int main(int argc, char **argv)
{
	static std::vector<Case> cases;
	for (uint64_t run : {4096, 65536, 1048576})
		for (const char *send : {"copy", "splice"})
			for (const char *place : {"file", "map"})
				for (bool fresh : {true, false})
					cases.push_back({run, send, place, fresh});
	for (const Case &c : cases)
		benchmark::RegisterBenchmark(
			(std::to_string(c.run >> 10) + "KiB/" + c.send + "/" + c.place + (c.fresh ? "/fresh" : "/again")).c_str(),
			[&c](benchmark::State &s) { run(s, c); })
			->UseRealTime()
			->Unit(benchmark::kMillisecond);
	benchmark::Initialize(&argc, argv);
	if (benchmark::ReportUnrecognizedArguments(argc, argv))
		return 1;
	benchmark::RunSpecifiedBenchmarks();
	return 0;
}
