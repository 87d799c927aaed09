// SPDX-License-Identifier: Apache-2.0
//
// Fetching over TCP on loopback, source and destination in one process, one thread per
// lane and side, as in post-copy.
//
//	latency/PLACE/alone, /busy	one page of 4 KiB is fetched at a time, from fetch to
//			poll's word that it is whole, into a page that is not there yet;
//			busy: while another lane fetches all the rest, without a pause.
//			Median, P99 and maximum in microseconds.
//	throughput/PLACE/SIZE/push, /pull	256 MiB, by writing and by fetching them, in runs
//			of this size, in turn in the same run: compare the two.
//
// file: what the transport does by itself; map: always into the mapping.
#include <benchmark/benchmark.h>
#include <arpa/inet.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>
extern "C" {
#include "engine/tcp/tcp_transport.h"
#include "engine/base/clock.h"
#include "engine/transport/transport.h"
}

namespace {

constexpr uint64_t kBytes = uint64_t{256} << 20;
constexpr uint64_t kWarm = uint64_t{64} << 20; // behind them, for a connection at its full window
constexpr uint64_t kChunk = uint64_t{1} << 20;

void check(int r, const lm_error &err)
{
	if (r >= 0 || r == -EAGAIN)
		return;
	fprintf(stderr, "%s\n", err.msg);
	abort();
}

// Source memory that holds something in every page, destination memory that has no page.
lm_region make_region(bool filled)
{
	lm_region r = {};
	r.fd = memfd_create("bench", MFD_CLOEXEC);
	if (r.fd < 0 || ftruncate(r.fd, static_cast<off_t>(kBytes + kWarm)))
		abort();
	void *p = mmap(nullptr, kBytes + kWarm, PROT_READ | PROT_WRITE, MAP_SHARED, r.fd, 0);
	if (p == MAP_FAILED)
		abort();
	if (filled)
		memset(p, 0x5a, kBytes + kWarm);
	r.host = static_cast<uint8_t *>(p);
	r.size = kBytes + kWarm;
	r.page_size = LM_PAGE_SIZE;
	return r;
}

const lm_region &source_region()
{
	static const lm_region r = make_region(true);
	return r;
}

// Two ends with their lanes, and threads that poll those of the passive side.
class Pair {
public:
	Pair(lm_direction direction, unsigned nlanes)
	    : direction_(direction), nlanes_(nlanes), dst_(make_region(false))
	{
		connect();
		for (unsigned i = 0; i < nlanes; i++)
			pumps_.emplace_back([this, i] { pump(i); });
	}

	~Pair()
	{
		stop_ = true;
		for (std::thread &t : pumps_)
			t.join();
		lm_transport_free(dest_);
		lm_transport_free(source_);
		munmap(dst_.host, dst_.size);
		close(dst_.fd);
	}

	Pair(const Pair &) = delete;
	Pair &operator=(const Pair &) = delete;

	void punch(uint64_t offset, uint64_t len)
	{
		if (fallocate(dst_.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
			      static_cast<off_t>(len)))
			abort();
	}

	// [at, end), in runs of this length.
	void push(uint64_t at, uint64_t end, uint64_t len)
	{
		while (at < end) {
			lm_run runs[LM_WRITE_MAX];
			unsigned n = batch(runs, at, end, len);
			for (unsigned done = 0; done < n;) {
				lm_error err;
				int r = lm_transport_write(source_, 0, runs + done, n - done, &err);
				check(r, err);
				if (r == -EAGAIN)
					poll_source();
				else
					done += static_cast<unsigned>(r);
			}
			at += n * len;
		}
		flush();
	}

	// The same, by fetching on this lane, until told to stop.
	void pull(unsigned lane, uint64_t at, uint64_t end, uint64_t len, const std::atomic<bool> *stop = nullptr)
	{
		while (at < end && !(stop && *stop)) {
			lm_run runs[LM_WRITE_MAX];
			unsigned n = batch(runs, at, end, len);
			fetch(lane, runs, n);
			at += n * len;
		}
		wait(lane);
	}

	void fetch(unsigned lane, const lm_run *runs, unsigned n)
	{
		for (unsigned done = 0; done < n;) {
			lm_error err;
			int r = lm_transport_fetch(dest_, lane, runs + done, n - done, &err);
			check(r, err);
			if (r == -EAGAIN)
				poll_dest(lane);
			else
				asked_[lane] += static_cast<unsigned>(r), done += static_cast<unsigned>(r);
		}
	}

	void wait(unsigned lane)
	{
		while (whole_[lane] < asked_[lane])
			poll_dest(lane);
	}

private:
	static unsigned batch(lm_run *runs, uint64_t at, uint64_t end, uint64_t len)
	{
		unsigned n = 0;
		for (end = std::min(at + kChunk, end); n < LM_WRITE_MAX && at < end; at += len)
			runs[n++] = {0, LM_RUN_DATA, at, len};
		return n;
	}

	void connect()
	{
		sockaddr_in a = {};
		socklen_t len = sizeof(a);
		lm_transport_params p = {};
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
		a.sin_family = AF_INET;
		a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		if (bind(fd, reinterpret_cast<sockaddr *>(&a), len) || listen(fd, 8) ||
		    getsockname(fd, reinterpret_cast<sockaddr *>(&a), &len))
			abort();
		std::string peer = "127.0.0.1:" + std::to_string(ntohs(a.sin_port));
		p.direction = direction_;
		p.nlanes = nlanes_;
		p.listen_fd = fd;
		p.peer = peer.c_str();
		p.cancel_fd = -1;
		p.deadline_ns = lm_now_ns() + 5 * LM_NS_PER_S;
		source_ = lm_transport_tcp_new();
		dest_ = lm_transport_tcp_new();
		std::thread other([&] { open(dest_, p, LM_DEST, dst_); });
		open(source_, p, LM_SOURCE, source_region());
		other.join();
		close(fd);
	}

	static void open(lm_transport *t, lm_transport_params p, lm_side side, const lm_region &r)
	{
		lm_error err;
		lm_key key;
		p.side = side;
		check(lm_transport_open(t, &p, &err), err);
		check(lm_transport_region_add(t, &r, &key, &err), err);
	}

	void pump(unsigned lane)
	{
		lm_transport *t = direction_ == LM_PUSH ? dest_ : source_;
		lm_poll_result res;
		lm_error err;
		while (!stop_ && !lm_transport_poll(t, lane, 20, &res, &err))
			;
	}

	void poll_source()
	{
		lm_poll_result res;
		lm_error err;
		check(lm_transport_poll(source_, 0, 100, &res, &err), err);
		flushed_ = res.flushed;
	}

	void poll_dest(unsigned lane)
	{
		lm_poll_result res;
		lm_error err;
		check(lm_transport_poll(dest_, lane, 100, &res, &err), err);
		whole_[lane] = res.fetched;
	}

	void flush()
	{
		lm_error err;
		int r;
		seq_++;
		while ((r = lm_transport_flush(source_, 0, seq_, &err)) == -EAGAIN)
			poll_source();
		check(r, err);
		while (flushed_ < seq_)
			poll_source();
	}

	lm_direction direction_;
	unsigned nlanes_;
	lm_region dst_;
	lm_transport *source_ = nullptr, *dest_ = nullptr;
	uint64_t seq_ = 0, flushed_ = 0;
	uint64_t asked_[2] = {}, whole_[2] = {}; // by the lane's thread
	std::atomic<bool> stop_{false};
	std::vector<std::thread> pumps_;
};

void latency(benchmark::State &state, const char *place, bool busy)
{
	setenv("LM_TCP_PLACE", place, 1);
	Pair pair(LM_PULL, 2);
	std::vector<double> us;
	std::atomic<bool> stop{false};
	std::thread background;
	uint64_t at = 0;

	if (busy)
		background = std::thread([&] {
			while (!stop) {
				pair.punch(0, kBytes);
				pair.pull(1, 0, kBytes, kChunk, &stop);
			}
		});
	for (auto _ : state) {
		lm_run run = {0, LM_RUN_DATA, at, LM_PAGE_SIZE};
		pair.punch(at, LM_PAGE_SIZE);
		usleep(200); // a fault comes out of the blue
		int64_t start = lm_now_ns();
		pair.fetch(0, &run, 1);
		pair.wait(0);
		us.push_back(static_cast<double>(lm_now_ns() - start) / 1e3);
		state.SetIterationTime(us.back() / 1e6);
		at = (at + 1237 * LM_PAGE_SIZE) % kBytes;
	}
	stop = true;
	if (busy)
		background.join();
	std::sort(us.begin(), us.end());
	state.counters["median_us"] = us[us.size() / 2];
	state.counters["p99_us"] = us[us.size() * 99 / 100];
	state.counters["max_us"] = us.back();
}

void throughput(benchmark::State &state, const char *place, uint64_t len, lm_direction direction)
{
	setenv("LM_TCP_PLACE", place, 1);
	for (auto _ : state) {
		Pair pair(direction, 1);
		auto move = [&](uint64_t at, uint64_t end) {
			direction == LM_PUSH ? pair.push(at, end, len) : pair.pull(0, at, end, len);
		};
		move(kBytes, kBytes + kWarm);
		int64_t start = lm_now_ns();
		move(0, kBytes);
		state.SetIterationTime(static_cast<double>(lm_now_ns() - start) / 1e9);
	}
	state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * kBytes));
}

} // namespace

int main(int argc, char **argv)
{
	for (const char *place : {"file", "map"}) {
		for (bool busy : {false, true})
			benchmark::RegisterBenchmark((std::string("latency/") + place + (busy ? "/busy" : "/alone")).c_str(),
						     [=](benchmark::State &s) { latency(s, place, busy); })
				->UseManualTime()
				->Iterations(5000)
				->Unit(benchmark::kMicrosecond);
		for (uint64_t len : {4096, 65536, 1048576})
			for (lm_direction d : {LM_PUSH, LM_PULL})
				benchmark::RegisterBenchmark((std::string("throughput/") + place + "/" +
							      std::to_string(len >> 10) + "KiB" +
							      (d == LM_PUSH ? "/push" : "/pull")).c_str(),
							     [=](benchmark::State &s) { throughput(s, place, len, d); })
					->UseManualTime()
					->Unit(benchmark::kMillisecond);
	}
	benchmark::Initialize(&argc, argv);
	if (benchmark::ReportUnrecognizedArguments(argc, argv))
		return 1;
	benchmark::RunSpecifiedBenchmarks();
	return 0;
}
